"""Weights at rest: those that a configuration expects, those that a file holds, and the differences."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.models.families import AnyConfig, AnyModel, create_model

State = dict[str, Tensor]
"""Parameters by name."""

TEACHER_PREFIX: Final = "criterion.teacher."

_MAX_LINES_PER_KIND: Final = 4


@dataclass
class Mismatch:
    """Differences between weights and what was expected."""

    missing: list[str] = field(default_factory=list)
    """Keys that should be there."""

    unexpected: list[str] = field(default_factory=list)
    """Keys that nothing uses."""

    wrong: dict[str, str] = field(default_factory=dict)
    """Keys with another shape or type, and what is wrong with each."""

    settings: list[str] = field(default_factory=list)
    """Differences that shapes do not show, such as the number of heads."""

    def raise_if_any(self, headline: str) -> None:
        """:raises CheckpointError: there are differences; at most 20 lines, whatever the number of keys."""
        lines = [
            *_describe("missing", _group(self.missing)),
            *_describe("unexpected", _group(self.unexpected)),
            *_describe("wrong shape or type", _group(self.wrong)),
            *_describe("different settings", self.settings),
        ]
        if lines:
            raise CheckpointError("\n".join([headline, *lines]))


def compare(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Mismatch:
    """Compare names, shapes and types of weights; the tensors of ``expected`` may be on the meta device."""
    mismatch = Mismatch(
        missing=[key for key in expected if key not in given], unexpected=[key for key in given if key not in expected]
    )
    for key, tensor in given.items():
        if key not in expected:
            continue
        if tensor.shape != expected[key].shape:
            mismatch.wrong[key] = f"{tuple(tensor.shape)} instead of {tuple(expected[key].shape)}"
        elif not tensor.is_floating_point():
            mismatch.wrong[key] = f"{tensor.dtype} instead of floating point".removeprefix("torch.")

    return mismatch


def build_skeleton(config: AnyConfig, *, num_tensors: int, path: Path | None = None) -> AnyModel:
    """Build the model of a configuration on the meta device: names and shapes without memory.

    :param num_tensors: how many tensors come with the configuration. A configuration from outside is believed only as far:
        every layer has at least one.
    :param path: where the configuration is from, for messages.
    :raises CheckpointError: the configuration makes no model, or one with more layers than there are tensors.
    """
    where = "" if path is None else f"{path}: "
    try:
        num_layers = config.count_layers()
        if num_layers <= num_tensors:
            with torch.device("meta"):
                return create_model(config)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as ex:
        raise CheckpointError(f"{where}The configuration is not valid: {ex}") from ex

    raise CheckpointError(f"{where}The configuration describes {num_layers} layers, but there are only {num_tensors} tensors.")


def fill_skeleton(
    model: AnyModel, state: Mapping[str, Tensor], *, device: torch.device | str, dtype: torch.dtype | None = None
) -> AnyModel:
    """Give a skeleton its weights, for use: in evaluation mode and without gradients.

    :param dtype: None = the model's own.
    """
    model.to_empty(device=device)
    model.to(dtype=dtype)
    model.load_state_dict(state)
    model.requires_grad_(False)

    return model.eval()


def _group(keys: Iterable[str] | Mapping[str, str]) -> list[str]:
    """Put the keys of one block together: ``blocks.2.* (12 keys)``."""
    groups: dict[str, list[str]] = {}
    for key in keys:
        block = re.match(r"(?:.*?\.)??blocks\.\d+(?=\.)", key)
        groups.setdefault(block[0] if block is not None else key, []).append(key)

    lines = []
    for name, members in groups.items():
        first = members[0] + (f": {keys[members[0]]}" if isinstance(keys, Mapping) else "")
        several = f"{name}.* ({len(members)} keys)" + (f", such as {first}" if isinstance(keys, Mapping) else "")
        lines.append(first if len(members) == 1 else several)

    return lines


def _describe(kind: str, lines: list[str]) -> list[str]:
    if len(lines) > _MAX_LINES_PER_KIND:
        lines = [*lines[: _MAX_LINES_PER_KIND - 1], f"… and {len(lines) - _MAX_LINES_PER_KIND + 1} more"]
    return [f"  {kind}:", *(f"    {line}" for line in lines)] if lines else []
