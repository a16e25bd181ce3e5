"""The configuration of a command as those see it who record its metrics: without secrets."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from fairseq2.runtime.dependency import DependencyResolver
from fairseq2.utils.structured import StandardValueConverter
from fairseq2.utils.yaml import YamlDumper

from d2v_plugin.core.fairseq2_private import RecipeConfigHolder
from d2v_plugin.core.secrets import hide_in, hide_in_data
from d2v_plugin.training.recorders.names import name_metric

# Sections whose settings can make a difference to what is learned.
_SECTIONS: Final = ("task", "model", "init", "criterion", "optimizer", "lr_scheduler", "trainer", "regime")


@dataclass(frozen=True)
class Configuration:
    """What was set."""

    sections: Mapping[str, Any]
    """All of it, as plain data."""

    text: str
    """All of it, as YAML."""

    @property
    def is_training(self) -> bool:
        """True if a model is trained, rather than evaluated."""
        return "regime" in self.sections

    @property
    def scores(self) -> list[str]:
        """The tags of the scores that a run measures, as far as they are known before it does: those of its probes."""
        probes = (self.sections.get("probing") or {}).get("probes") or []

        return [name_metric("valid/probe", f"probe_{probe['name']}").tag for probe in probes]

    def settings(self) -> dict[str, str | float | bool]:
        """What can make a difference to what is learned, by dotted path: hyperparameters."""
        return dict(flatten_settings({name: self.sections.get(name) for name in _SECTIONS}))


def read_configuration(resolver: DependencyResolver) -> Configuration:
    """Read the configuration of the recipe that is run."""
    sections = hide_in_data(StandardValueConverter().unstructure(resolver.resolve(RecipeConfigHolder).config))
    text = io.StringIO()
    resolver.resolve(YamlDumper).dump(sections, text)

    return Configuration(sections, hide_in(text.getvalue()))


def flatten_settings(value: object, path: str = "") -> Iterator[tuple[str, str | float | bool]]:
    """Yield the settings of nested sections by their dotted paths; those that are not set are left out."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from flatten_settings(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, str | int | float):
        yield path, value
    elif value is not None:
        yield path, str(value)
