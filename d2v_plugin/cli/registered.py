"""What is registered by name, asked of the registries: that takes PyTorch, fairseq2 and seconds."""

from __future__ import annotations

from collections.abc import Sequence

from fairseq2.datasets import DatasetFamily
from fairseq2.models import ModelFamily
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver

from d2v_plugin.cli.listing import write_section
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
    """Describe what recipes may name, kind by kind, as text."""
    container = DependencyContainer()
    register_library(container)
    register_all(container, extensions)
    sections = {
        "tasks": registered_names(container, Task),
        "datasets": sorted(str(key) for key in container.iter_keys(DatasetFamily)),
        "models": _describe_models(container),
        "named models": [f"{name}  {data}" for name, data in list_named(container).items()],
        "criteria": registered_names(container, Criterion),
        "mask samplers": registered_names(container, MaskSampler),
        "probes": registered_names(container, Probe),
    }

    return "\n\n".join(write_section(title, lines) for title, lines in sections.items())


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
