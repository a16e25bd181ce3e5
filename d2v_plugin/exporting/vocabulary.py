"""The files of a vocabulary that belong to a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from fairseq2.logging import log

from d2v_plugin.data.text import SENTENCEPIECE_FILE, VOCABULARY_FILE
from d2v_plugin.weights.directory import is_model_directory

NAMES: Final = (
    *(VOCABULARY_FILE, SENTENCEPIECE_FILE),
    *("vocab.json", "merges.txt"),
    *("encoder.json", "vocab.bpe", "dict.txt"),
)
"""All files that :func:`d2v_plugin.data.tokenizers.open_tokenizer` reads."""


def find_vocabulary(path: Path, sections: Mapping[str, Any]) -> list[Path]:
    """Find the vocabulary that text is read with, or transcripts are spelled in.

    :param path: a checkpoint. A model directory carries its own; a run names the folder.
    :param sections: those of the run (:attr:`d2v_plugin.weights.provenance.Provenance.sections`).
    """
    if is_model_directory(path):
        return _files_in(path)
    places = list(_find_places(sections))
    files = [file for place in places for file in ([place] if place.is_file() else _files_in(place))]
    if places and not files:
        log.warning("The vocabulary of {} is in none of the places that the run names: {}.", path, ", ".join(map(str, places)))

    return files


def _find_places(sections: Mapping[str, Any]) -> Iterator[Path]:
    """Where the run read its vocabulary: a file or a folder; nothing if it had none."""
    task, dataset = (sections.get(name) or {} for name in ("task", "dataset"))
    settings, data = (task.get("config") or {}, dataset.get("config_overrides") or {})
    match dataset.get("family"):
        case "sentences":
            yield Path(data.get("vocabulary") or data.get("path") or "")
        case "text_manifest" if "path" in data:
            yield Path(data["path"])
        case "multimodal_manifest" if "path" in (data.get("text") or {}):
            yield Path(data["text"]["path"])
        case "audio_manifest" if settings.get("units") == "sentencepiece":
            yield Path(settings.get("sentencepiece") or Path(data.get("path") or "", SENTENCEPIECE_FILE))


def _files_in(folder: Path) -> list[Path]:
    return [folder / name for name in NAMES if (folder / name).is_file()]
