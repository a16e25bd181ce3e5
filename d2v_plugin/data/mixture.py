"""Several datasets as one: their rows one after the other, drawn by weight, and counted by dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from fairseq2.recipe.error import RecipeError
from torch import Tensor
from typing_extensions import override

from d2v_plugin.data.files import Location
from d2v_plugin.data.labels import sort_labels
from d2v_plugin.data.manifest import Manifest
from d2v_plugin.data.order import MixedOrder, Order, Rows, SampleOrder
from d2v_plugin.data.tsv_scan import IntArray


@dataclass(frozen=True)
class Mixture:
    """K datasets whose samples are numbered one dataset after the other."""

    names: Sequence[str]

    bounds: Rows
    """(K + 1,) the first sample of each, and the number of all."""

    def count(self, ids: Tensor) -> Tensor:
        """(N,) samples -> (K,) how many are of each dataset."""
        ends = torch.from_numpy(self.bounds[1:]).to(ids.device)
        return torch.bincount(torch.searchsorted(ends, ids, right=True), minlength=len(self.names))


class JoinedManifest(Manifest):
    """The rows of the manifests of several datasets, one after the other."""

    def __init__(self, parts: Sequence[Manifest], weights: Sequence[float] | None, missing: Sequence[Path] = ()) -> None:
        """
        :param weights: how many samples are drawn of each, relative to the others; None = as many as it has.
        :param missing: datasets without such a split, which may be read in order, but not trained on.
        """
        self._bounds = np.cumsum([0, *map(len, parts)])
        self.parts, self.weights, self._missing = parts, weights, missing
        self.declared_classes = next((part.declared_classes for part in parts if part.declared_classes is not None), None)
        self.declared_vocabulary = None
        self.roots = list(dict.fromkeys(root for part in parts for root in part.roots))
        folders = [part.path.parent for part in parts]
        # Of all of them; none has this name.
        self.path = Path(" + ".join(map(str, folders)), parts[0].path.name)
        names = [folder.name for folder in folders]
        self._names = names if len(set(names)) == len(names) else list(map(str, folders))

    @override
    def __len__(self) -> int:
        return int(self._bounds[-1])

    @property
    @override
    def bounds(self) -> IntArray:
        return self._bounds

    @override
    def hash_rows(self) -> str:
        content = [part.hash_rows() for part in self.parts]
        return hashlib.sha256("\n".join([*content, str(self.weights)]).encode()).hexdigest()

    def mix(self, bounds: Rows) -> Mixture:
        """
        :param bounds: (K + 1,) of the samples, which need not be rows.
        :raises RecipeError: a dataset has no such split.
        """
        if self._missing:
            raise RecipeError(
                f"{self._missing[0]} has no {self.path.name}, which is to be trained on together with those of others."
            )
        return Mixture(self._names, bounds)

    def _find(self, row: int) -> tuple[Manifest, int]:
        part = int(np.searchsorted(self._bounds, row, side="right")) - 1
        return self.parts[part], row - int(self._bounds[part])

    @override
    def location(self, row: int) -> Location:
        part, row = self._find(row)
        return part.location(row)

    @property
    @override
    def to_fetch(self) -> Callable[[int], Location] | None:
        return None if all(part.to_fetch is None for part in self.parts) else self.location

    @override
    def place_of(self, row: int) -> tuple[Path, int]:
        part, row = self._find(row)
        return part.place_of(row)

    @override
    def text(self, column: str, row: int) -> str | None:
        part, row = self._find(row)
        return part.text(column, row)

    @override
    def integers(self, column: str) -> IntArray:
        return np.concatenate([part.integers(column) for part in self.parts])

    @override
    def distinct(self, column: str) -> list[str]:
        return sort_labels(value for part in self.parts for value in part.distinct(column))


def in_any_order(samples: Rows, seed: int) -> Order:
    """Single samples, which follow each other without gaps."""
    return SampleOrder(len(samples), seed, int(samples[0]))


MakeOrder = Callable[[Rows, int], Order]
"""Orders some samples, given in ascending order, with a seed."""


def arrange(
    manifest: Manifest, samples: Rows, seed: int, make: MakeOrder = in_any_order, bounds: Rows | None = None
) -> tuple[Order, Mixture | None]:
    """The order of a split's samples, and what they are a mixture of.

    :param samples: those that are used, ascending.
    :param bounds: (K + 1,) the first sample of each dataset, and the number of all; None = samples are rows.
    :raises RecipeError: a dataset has no such split, or none of its samples is used.
    """
    if not isinstance(manifest, JoinedManifest):
        return make(samples, seed), None
    mixture = manifest.mix(manifest.bounds if bounds is None else bounds)
    parts = np.split(samples, np.searchsorted(samples, mixture.bounds[1:-1]))
    if (empty := next((number for number, part in enumerate(parts) if not len(part)), None)) is not None:
        raise RecipeError(f"{manifest.parts[empty].path} has no sample that is used; leave it out of `parts`.")
    # Two of equal size would otherwise be read in the same order.
    orders = [make(part, seed + (number << 40)) for number, part in enumerate(parts)]

    return MixedOrder(orders, manifest.weights, seed), mixture
