"""Manifests of a user's folder: a training split, one held out, and labelled samples for the probe."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fairseq2.recipe.error import RecipeError

from d2v_plugin.core.batch import Modality
from d2v_plugin.core.storage import write_atomically
from d2v_plugin.data.dataset import AudioManifest, ImageManifest, ManifestConfig
from d2v_plugin.data.manifest import Manifest
from d2v_plugin.data.preparation.audio import prepare_audio
from d2v_plugin.data.preparation.common import Report
from d2v_plugin.data.preparation.files import FileOptions
from d2v_plugin.data.preparation.image import prepare_images
from d2v_plugin.verbs.own.corpus import write_corpus
from d2v_plugin.verbs.own.folder import Folder

PROBE: Final = "probe"
SAMPLE_RATE: Final = 16_000
"""Of all speech models here."""

_SEED: Final = 42
_HELD_OUT: Final = 300
"""So many held-out samples measure an accuracy to 3 points; of a small dataset at most a fifth is held out."""

_MAX_PROBED: Final = 1000
_SEGMENT_SECONDS: Final = 20.0


def write_manifests(folder: Folder, out: Path, *, tokenizer: Path | None = None) -> Report:
    """Write the dataset of a folder, and read its files once for that.

    :param tokenizer: for text, the SentencePiece model of the model that training starts from; None = train one.
    :returns: what was found and dropped.
    :raises RecipeError: too little can be used; nothing is written then.
    """
    if folder.modality is Modality.TEXT:
        return write_corpus(folder.path, folder.files, out, tokenizer=tokenizer)
    options: FileOptions = {
        "valid_percent": min(20.0, max(1.0, 100 * _HELD_OUT / len(folder.files))),
        "seed": _SEED,
        "shard_size": None,
        "workers": None,
    }
    labels = "folders" if folder.has_classes else None
    if folder.modality is Modality.AUDIO:
        report = prepare_audio(
            [folder.path], out, labels=labels, sample_rate=SAMPLE_RATE, segment_seconds=_SEGMENT_SECONDS, fairseq=False, **options
        )
    else:
        report = prepare_images([folder.path], out, labels=labels, **options)
    if folder.has_classes:
        write_probe(out, folder.modality)

    return report


def write_probe(out: Path, modality: Modality) -> None:
    """Write ``probe.tsv``: rows of ``train.tsv`` to fit probes on, as many of each class."""
    dataset = (AudioManifest if modality is Modality.AUDIO else ImageManifest).open(ManifestConfig(path=out, check_files=False))
    manifest = dataset.split("train")
    rows = choose_balanced([manifest.text("label", row) for row in range(len(manifest))], _MAX_PROBED)
    copy_rows(manifest, rows, out / f"{PROBE}.tsv")


def choose_balanced(labels: Sequence[str | None], most: int) -> list[int]:
    """Choose rows, as many of each label as there are, up to its share of ``most``."""
    by_label: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        if label is not None:
            by_label.setdefault(label, []).append(row)
    generator = random.Random(_SEED)
    share = max(5, most // max(1, len(by_label)))

    return sorted(row for rows in by_label.values() for row in generator.sample(rows, min(share, len(rows))))


def copy_rows(manifest: Manifest, rows: Sequence[int], path: Path) -> None:
    """Write a manifest of some rows of another one in the same folder.

    :raises RecipeError: there are none.
    """
    if not rows:
        raise RecipeError(f"{manifest.path} has no labelled rows.")
    lines = manifest.path.read_bytes().split(b"\n")
    first = manifest.place_of(0)[1] - 1
    kept = [*lines[:first], *(lines[first + row] for row in rows)]
    write_atomically(path, b"\n".join(kept) + b"\n")
