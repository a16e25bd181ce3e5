"""Labels of a dataset: their order, what a fine-tuned model has to remember of them, and those of single rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

LabelKind = Literal["no labels", "classes", "numbers", "tags", "symbols"]
"""What samples are labelled with: one class, one number, any of some tags, a sequence of symbols (transcripts), or nothing."""


@dataclass(frozen=True)
class LabelSet:
    """The classes, tags or output symbols of a model, by index."""

    names: Sequence[str]
    """Their names; for CTC the first is the blank."""

    @cached_property
    def indices(self) -> dict[str, int]:
        """Index by name."""
        return {name: index for index, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class RowLabels:
    """The labels of a split's rows, one for each; see :class:`d2v_plugin.data.batches.Targets`."""

    labels: Tensor
    """Classes (rows,) int64, values (rows,) float32, or whether each tag applies, (rows, C) bool."""

    def stack(self, rows: Sequence[int]) -> tuple[Tensor, None]:
        """Classes or values (N,), or tags (N, C) float32."""
        labels = self.labels[list(rows)]
        return (labels.float() if labels.dtype == torch.bool else labels), None


def sort_labels(labels: Iterable[str]) -> list[str]:
    """The different labels in the order of their indices: as numbers if all of them are."""
    found = set(labels)
    return sorted(found, key=int) if all(label.isdecimal() for label in found) else sorted(found)
