"""What can be described by name: recipes, their sections, components, data, models and archs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Final, cast

from fairseq2.datasets import DatasetFamily
from fairseq2.models import ModelFamily
from fairseq2.optim.lr_schedulers import LRScheduler
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver
from torch.optim import Optimizer

from d2v_plugin.cli.describe.fields import Described, describe_field, describe_fields, find_summary, write_value
from d2v_plugin.cli.user_errors import family_archs
from d2v_plugin.core.fairseq2_private import ComponentEntry, register_library, register_train_recipe
from d2v_plugin.core.registry import kind_of
from d2v_plugin.criteria.base import Criterion
from d2v_plugin.masking.base import MaskSampler
from d2v_plugin.probing.base import Probe
from d2v_plugin.tasks.base import Task
from d2v_plugin.verbs.evaluate.config import EvaluateConfig
from d2v_plugin.verbs.export.config import ExportConfig
from d2v_plugin.verbs.extensions import Extension
from d2v_plugin.verbs.extract.config import ExtractConfig
from d2v_plugin.verbs.inspect.config import InspectConfig
from d2v_plugin.verbs.predict.config import PredictConfig
from d2v_plugin.verbs.train.config import TrainConfig
from d2v_plugin.verbs.train.recipe import TrainRecipe

VERBS: Final[dict[str, type[Any]]] = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "extract": ExtractConfig,
    "inspect": InspectConfig,
    "predict": PredictConfig,
    "export": ExportConfig,
}

_COMPONENTS: Final = {
    Task: "task: {name: NAME, config: {…}}",
    Criterion: "criterion: {name: NAME, config: {…}}",
    MaskSampler: "criterion: {config: {masking: {name: NAME, config: {…}}}}",
    Probe: "probing: {probes: [{name: NAME, config: {…}}]}",
    Optimizer: "optimizer: {name: NAME, config: {…}}",
    LRScheduler: "lr_scheduler: {name: NAME, config: {…}}",
}
"""Registries, and where a recipe names what is in them."""


@dataclass(frozen=True)
class Topic:
    """Something with settings."""

    kind: str

    name: str

    summary: str

    usage: str
    """Where a recipe says it."""

    settings: Sequence[Described]


def find_topics(extensions: Sequence[Extension]) -> list[Topic]:
    """All that can be described, in the order of the reference."""
    container = DependencyContainer()
    register_library(container)
    register_train_recipe(container, TrainRecipe(extensions))

    return [
        *_describe_verbs(),
        *_describe_sections(),
        *_describe_components(container),
        *_describe_datasets(container),
        *_describe_models(container),
    ]


def _describe_verbs() -> Iterator[Topic]:
    """The sections of a recipe, without what is in them."""
    for name, config in VERBS.items():
        default, settings = config(), []
        for item in fields(config):
            value = getattr(default, item.name)
            written = "{…}" if is_dataclass(value) else write_value(value)
            settings.append(describe_field(config, item.name, written))
        yield Topic("verb", name, find_summary(config), f"fairseq2 recipe {name}", settings)


def _describe_sections() -> Iterator[Topic]:
    seen: set[str] = set()
    for verb, config in VERBS.items():
        default = config()
        for item in fields(config):
            section = getattr(default, item.name)
            if is_dataclass(section) and item.name not in seen:
                seen.add(item.name)
                yield Topic(
                    f"section of {verb}",
                    item.name,
                    find_summary(type(section)),
                    f"{item.name}: {{…}}",
                    [*describe_fields(section)],
                )


def _describe_components(container: DependencyContainer) -> Iterator[Topic]:
    entries = cast("list[tuple[type[object], str]]", list(container.iter_keys(ComponentEntry)))
    for base, usage in _COMPONENTS.items():
        for name in sorted(name for kls, name in entries if kls is base):
            config = container.resolve(ComponentEntry, key=(base, name)).config_kls
            yield Topic(_kind_of(base), name, find_summary(config), usage.replace("NAME", name), [*describe_fields(config)])


def _kind_of(base: type[object]) -> str:
    return "learning-rate schedule" if base is LRScheduler else kind_of(base)


def _describe_datasets(resolver: DependencyResolver) -> Iterator[Topic]:
    for name in sorted(str(key) for key in resolver.iter_keys(DatasetFamily)):
        config = resolver.resolve(DatasetFamily, key=name).config_kls
        if not config.__module__.startswith("fairseq2."):
            usage = f"dataset: {{family: {name}, config_overrides: {{…}}}}"
            yield Topic("dataset family", name, find_summary(config), usage, [*describe_fields(config)])


def _describe_models(resolver: DependencyResolver) -> Iterator[Topic]:
    """Our families and those of extensions; of an arch what differs from the family's defaults."""
    for name in sorted(str(key) for key in resolver.iter_keys(ModelFamily)):
        config: type[Any] = resolver.resolve(ModelFamily, key=name).config_kls
        if config.__module__.startswith("fairseq2."):
            continue
        defaults = [*describe_fields(config)]
        usage = f"model: {{family: {name}, arch: ARCH, config_overrides: {{…}}}}"
        yield Topic("model family", name, find_summary(config), usage, defaults)
        for arch in family_archs(resolver, name):
            values = [item for item in describe_fields(resolver.resolve(config, key=arch)) if item not in defaults]
            yield Topic(f"arch of {name}", arch, "What differs from the family's defaults:", usage.replace("ARCH", arch), values)
