"""Configurations of recipes with all defaults, each resolved once."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from fairseq2.utils.config import StandardConfigMerger
from fairseq2.utils.structured import StandardValueConverter
from ruamel.yaml import YAML

from d2v_plugin.models.families import FAMILIES, AnyConfig

ROOT = Path(__file__).parents[2] / "recipes"

_DUMPED: dict[str, dict[str, Any]] = {}


def dump(command: Any, name: str) -> dict[str, Any]:
    """What ``--dump-config`` prints of a recipe."""
    if name not in _DUMPED:
        outcome = command("recipe", "train", "--config-file", ROOT / name, "--dump-config")
        assert outcome.status == 0, outcome.err
        _DUMPED[name] = YAML(typ="safe").load(outcome.out)

    return deepcopy(_DUMPED[name])


def read_model(section: dict[str, Any]) -> AnyConfig:
    """The configuration of a model, its arch and the overrides made into one."""
    family, converter = FAMILIES[section["family"]], StandardValueConverter()
    arch = converter.unstructure(family.archs[section["arch"]]())
    merged = StandardConfigMerger().merge(arch, section["config_overrides"] or {})
    config: AnyConfig = converter.structure(merged, family.config_kls)

    return config
