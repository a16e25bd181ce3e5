"""The labels of a dataset, as a fine-tuned model has to remember them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property


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
