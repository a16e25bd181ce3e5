"""What the conversions of all heads of fairseq's fine-tuned models share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq2.recipe.error import RecipeError
from torch import Tensor

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.data.lines import read_lines
from d2v_plugin.data.problems import Problems
from d2v_plugin.weights.provenance import Provenance
from d2v_plugin.weights.state import State


@dataclass(frozen=True)
class Head:
    """What stands on top of a fine-tuned model."""

    state: State | None
    """Under the names of our criterion; None = it is left out."""

    provenance: Provenance | None
    """What our evaluation needs to know."""

    reason: str = ""
    """Why it is left out."""


class LeftOutError(Exception):
    """Nothing here computes what the head does."""


def found_head(
    state: State, labels: LabelSet | None, task: tuple[str, dict[str, Any]], family: str, criterion: tuple[str, dict[str, Any]]
) -> Head:
    sections = {
        "task": {"name": task[0], "config": task[1]},
        "dataset": {"family": family, "config_overrides": {}},
        "criterion": {"name": criterion[0], "config": criterion[1]},
    }
    return Head({key: tensor.float() for key, tensor in state.items()}, Provenance(sections, labels))


def read_linear(path: Path, head: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    try:
        return head[f"{name}.weight"], head[f"{name}.bias"]
    except KeyError as ex:
        raise CheckpointError(f"{path} lacks {ex} of its head.") from ex


def name_classes(path: Path, symbols: Sequence[str] | None, labels: Path | None, count: int) -> list[str]:
    """The names of classes or tags; their numbers where nothing names them."""
    if labels is not None:
        return check_count(path, read_names(labels), count, labels)
    if symbols is not None and len(symbols) == count:
        return list(symbols)
    return [str(number) for number in range(count)]


def check_count(path: Path, names: Sequence[str], count: int, labels: Path | None) -> list[str]:
    if len(names) != count:
        raise CheckpointError(f"{labels or path} names {len(names)} outputs, but the head of {path} has {count}.")
    if len(set(names)) != count:
        raise CheckpointError(f"{labels or path} names some outputs twice.")
    return list(names)


def read_names(labels: Path) -> list[str]:
    problems = Problems()
    try:
        rows = [row for row in read_lines(labels, problems) if row.strip()]
        problems.raise_if_any()
    except RecipeError as ex:
        raise CheckpointError(str(ex)) from ex
    return rows
