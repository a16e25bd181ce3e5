"""Settings of the run that wrote a checkpoint, as the defaults of a recipe that works on it and so needs no YAML."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from fairseq2.utils.config import StandardConfigMerger

from d2v_plugin.core.fairseq2_private import swap_default_resolver
from d2v_plugin.core.remote import place
from d2v_plugin.data.text import SENTENCEPIECE_FILE
from d2v_plugin.verbs.inheritance import read_whole
from d2v_plugin.weights.directory import is_model_directory
from d2v_plugin.weights.sources import Source, find_provenance, find_source


def use_settings_of_run(args: Namespace, *, sections: Sequence[str]) -> Namespace:
    """Read ``checkpoint.path`` of the recipe and the command line, and make the run's sections the first of all overrides.

    Of a converted checkpoint only the modality is known: its task and the family of its dataset are the first overrides.

    :param args: fairseq2's parsed command line; a copy is returned.
    :param sections: those that the recipe has.
    :raises CheckpointError: there is no such checkpoint.
    :raises RecipeError: as for :func:`d2v_plugin.verbs.inheritance.resolve_bases`.
    """
    own = [] if args.config_file is None else read_whole(args.config_file)
    overrides: list[Mapping[str, Any]] = [*own, *(args.config_overrides or [])]
    path = _find_path(overrides)
    if path is not None:
        overrides.insert(0, _known_settings(path, sections))

    return Namespace(**vars(args) | {"config_file": None, "config_overrides": overrides})


def _known_settings(path: str, sections: Sequence[str]) -> dict[str, Any]:
    # Nothing can be registered in the recipe's own container once it has been asked for something.
    with swap_default_resolver(None):  # type: ignore[arg-type]
        provenance = find_provenance(path)
        if provenance is not None:
            known = {name: section for name, section in provenance.sections.items() if name in sections}
            if is_model_directory(place(path)):
                known = _point_at_vocabulary(known, place(path).absolute())
            return {"_set_": known}

        return _sections_of_model(find_source(path))


def _point_at_vocabulary(sections: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Settings of a model directory: what inputs are read with lies in it, wherever it was when the model was trained."""
    known = deepcopy(dict(sections))
    dataset, task = known.get("dataset") or {}, known.get("task") or {}
    has_pieces = (folder / SENTENCEPIECE_FILE).is_file()
    if dataset.get("family") == "sentences" and (
        has_pieces or (folder / "vocab.json").is_file() or (folder / "dict.txt").is_file()
    ):
        dataset["config_overrides"] = {**(dataset.get("config_overrides") or {}), "vocabulary": str(folder)}
    if (task.get("config") or {}).get("units") == "sentencepiece" and has_pieces:
        task["config"]["sentencepiece"] = str(folder / SENTENCEPIECE_FILE)

    return known


def _sections_of_model(source: Source) -> dict[str, Any]:
    """Say how data for a model is read, as far as the model says; nothing for a model of several modalities."""
    if len(source.config.frontends) != 1:
        return {}
    (modality,) = (modality.value for modality in source.config.frontends)
    image = source.config.image
    config = {} if image is None else {"image": {"size": image.image_size}}

    return {"task": {"name": f"{modality}_pretraining", "config": config}, "dataset": {"family": f"{modality}_manifest"}}


def _find_path(overrides: Sequence[Mapping[str, Any]]) -> str | None:
    merged: object = {}
    for override in overrides:
        merged = StandardConfigMerger().merge(merged, override)
    section = merged.get("checkpoint") if isinstance(merged, Mapping) else None
    path = section.get("path") if isinstance(section, Mapping) else None

    return path if isinstance(path, str) else None
