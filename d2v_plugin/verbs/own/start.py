"""The run that training starts from: its model, its task, and where its vocabulary lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq2.recipe.error import RecipeError

from d2v_plugin.core.batch import Modality
from d2v_plugin.core.plain_yaml import PlainYamlError, read_yaml
from d2v_plugin.data.text import SENTENCEPIECE_FILE
from d2v_plugin.weights.run_folder import RunFolder, find_checkpoints
from d2v_plugin.weights.sources import find_provenance


@dataclass(frozen=True)
class Start:
    """What training starts from."""

    model: Mapping[str, Any]
    """The section ``model``: family, arch and overrides."""

    task: Mapping[str, Any]
    """The section ``task``."""

    modality: Modality

    dataset: Path | None = None
    """The folder of manifests that it learned from, if that is still there."""

    @property
    def tokenizer(self) -> Path | None:
        """Its SentencePiece model; None = it has none."""
        path = None if self.dataset is None else self.dataset / SENTENCEPIECE_FILE
        return path if path is not None and path.is_file() else None

    @property
    def is_small(self) -> bool:
        """Whether its model is one of the small ones, which learn at higher rates."""
        return bool(str(self.model["arch"]).endswith("_tiny"))


def find_start(path: str) -> Start:
    """Read what a run says of itself.

    :raises RecipeError: there is no run, or it learned from several modalities.
    """
    checkpoints = find_checkpoints(path)
    config = None if checkpoints is None else RunFolder(checkpoints.parent).config
    provenance = find_provenance(path) if config is not None and config.is_file() else None
    if config is None or provenance is None:
        raise RecipeError(
            f"`init.path` is {path}, which is no run with a config.yaml and checkpoints; to start from converted weights write a "
            "recipe that names their arch, and take `fairseq2 recipe train`."
        )
    try:
        model = read_yaml(config)["model"]
    except (PlainYamlError, KeyError) as ex:
        raise RecipeError(f"{config} cannot be read: {ex}") from None
    task = provenance.sections["task"]
    name = str(task["name"]).partition("_")[0]
    if name not in [modality.value for modality in Modality]:
        raise RecipeError(f"`init.path` is {path}, whose task is `{task['name']}`; a run of `pretrain` is meant.")
    overrides = provenance.sections["dataset"]["config_overrides"] or {}
    dataset = Path(overrides["path"]) if overrides.get("path") else None

    return Start(
        {key: model[key] for key in ("family", "arch", "config_overrides")},
        task,
        Modality(name),
        dataset if dataset is not None and dataset.is_dir() else None,
    )
