"""Text of ``fairseq2 recipe list``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fairseq2.datasets import DatasetFamily
from fairseq2.models import ModelFamily
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver

from d2v_plugin.cli.help import SUMMARIES
from d2v_plugin.cli.user_errors import family_archs
from d2v_plugin.core.fairseq2_private import register_library
from d2v_plugin.core.registry import registered_names
from d2v_plugin.criteria.base import Criterion
from d2v_plugin.masking.base import MaskSampler
from d2v_plugin.probing.base import Probe
from d2v_plugin.tasks.base import Task
from d2v_plugin.verbs.extensions import Extension, register_all
from d2v_plugin.weights.named import list_named


def describe_registered(extensions: Sequence[Extension]) -> str:
    """Describe the verbs, all that is registered, and the recipes at hand, as text."""
    container = DependencyContainer()
    register_library(container)
    register_all(container, extensions)

    sections = [_section("verbs", [f"{name:<9} {summary}" for name, summary in SUMMARIES.items()])]
    sections += [
        _section("tasks", registered_names(container, Task)),
        _section("datasets", sorted(str(key) for key in container.iter_keys(DatasetFamily))),
        _section("models", _describe_models(container)),
        _section("named models", [f"{name}  {data}" for name, data in list_named(container).items()]),
        _section("criteria", registered_names(container, Criterion)),
        _section("mask samplers", registered_names(container, MaskSampler)),
        _section("probes", registered_names(container, Probe)),
        _section("recipes", [_describe_recipe(path) for path in find_recipes()]),
    ]

    return "\n\n".join(sections)


def find_recipes() -> list[Path]:
    """The YAML files under ``recipes/`` of the working directory, else of the source checkout."""
    here, checkout = Path("recipes"), Path(__file__).parents[2] / "recipes"

    return sorted(here.rglob("*.yaml") if here.is_dir() else checkout.rglob("*.yaml"))


def _describe_models(resolver: DependencyResolver) -> list[str]:
    """Our families and those of extensions with their archs, fairseq2's own in one line."""
    builtin, ours = [], []
    for key in sorted(str(key) for key in resolver.iter_keys(ModelFamily)):
        family = resolver.resolve(ModelFamily, key=key)
        if family.config_kls.__module__.startswith("fairseq2."):
            builtin.append(key)
        else:
            ours.append(f"{key}: {', '.join(family_archs(resolver, key))}")

    return [*ours, f"fairseq2's own: {', '.join(builtin)}"]


def _describe_recipe(path: Path) -> str:
    first_line = path.read_text(encoding="utf-8").split("\n", 1)[0]

    return f"{path}  {first_line.lstrip('# ')}" if first_line.startswith("#") else str(path)


def _section(title: str, lines: Sequence[str]) -> str:
    return "\n".join([f"{title}:", *(f"  {line}" for line in lines or ["none"])])
