"""The order of samples: a function of (seed, epoch) and the global position alone.

Epoch after epoch forms one endless sequence of *items*: single rows, or batches of rows of similar length. Update k consists
of items [k·U, (k+1)·U) whatever the number of ranks; nothing is dropped at the end of an epoch, an update may span two.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np
from fairseq2.recipe.error import RecipeError
from numpy.typing import NDArray
from typing_extensions import override

from d2v_plugin.data.random import Purpose, draw_permutation

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class RowBatch:
    """The rows of one forward pass on one rank."""

    rows: Rows
    """(N,) rows of the manifest."""

    epochs: Rows
    """(N,) the epoch of each row, from 0."""


@dataclass(frozen=True)
class Plan:
    """The order of an epoch."""

    rows: Rows
    """Those of all items, one item after the other."""

    bounds: Rows | None = None
    """(items + 1,) where each item starts, and the end; None = items are single rows."""

    epochs: Rows | None = None
    """The epoch of each row in its own dataset; None = that of the plan."""


class Order(ABC):
    """An endless sequence of items."""

    def __init__(self, num_items: int, seed: int) -> None:
        """:param num_items: items per epoch."""
        if num_items == 0:
            raise ValueError("`num_items` must be positive; there is nothing to order.")
        self.num_items = num_items
        self.seed = seed
        self._plans: dict[int, Plan] = {}
        self._lock = Lock()

    def read(self, start: int, stop: int) -> RowBatch:
        """The rows of items [start, stop) of the endless sequence. Safe to call from many threads."""
        batch, _ = self.read_items(start, stop)
        return batch

    def read_items(self, start: int, stop: int) -> tuple[RowBatch, Rows]:
        """As :meth:`read`, and (stop - start,) how many of the rows each item has."""
        rows, epochs, sizes = [], [], []
        while start < stop:
            epoch, first = divmod(start, self.num_items)
            last = min(first + stop - start, self.num_items)
            plan = self._plan_of(epoch)
            begin, end = (first, last) if plan.bounds is None else (int(plan.bounds[first]), int(plan.bounds[last]))
            rows.append(plan.rows[begin:end])
            epochs.append(np.full(end - begin, epoch) if plan.epochs is None else plan.epochs[begin:end])
            sizes.append(np.ones(last - first, dtype=np.int64) if plan.bounds is None else np.diff(plan.bounds[first : last + 1]))
            start += last - first

        return RowBatch(np.concatenate(rows), np.concatenate(epochs)), np.concatenate(sizes)

    def _plan_of(self, epoch: int) -> Plan:
        with self._lock:
            if epoch not in self._plans:
                # Threads may work on both sides of an epoch's end, not further apart.
                self._plans = {key: value for key, value in self._plans.items() if key == epoch - 1}
                self._plans[epoch] = self._make_plan(epoch)
            return self._plans[epoch]

    @abstractmethod
    def _make_plan(self, epoch: int) -> Plan: ...


class SampleOrder(Order):
    """Items are single rows."""

    def __init__(self, num_items: int, seed: int, first: int = 0) -> None:
        """:param first: the number of the first row."""
        super().__init__(num_items, seed)
        self._first = first

    @override
    def _make_plan(self, epoch: int) -> Plan:
        return Plan(self._first + draw_permutation(self.seed, epoch, Purpose.ORDER, self.num_items))


class MixedOrder(Order):
    """Items of K other orders, so many of each as their weights say: exactly so in every epoch, which has as many items as all.

    Each order goes through its own epochs, faster or slower than this one; whose turn it is within an epoch is random.
    """

    def __init__(self, orders: Sequence[Order], weights: Sequence[float] | None, seed: int) -> None:
        """:param weights: (K,) relative to the others; None = each order's number of items."""
        super().__init__(sum(order.num_items for order in orders), seed)
        self._orders = orders
        self.counts = _share_out(self.num_items, weights or [order.num_items for order in orders])
        """(K,) items of each order in an epoch."""

    @override
    def _make_plan(self, epoch: int) -> Plan:
        read = [
            order.read_items(epoch * count, (epoch + 1) * count)
            for order, count in zip(self._orders, self.counts.tolist(), strict=True)
        ]
        rows, epochs = (np.concatenate([getattr(batch, name) for batch, _ in read]) for name in ("rows", "epochs"))
        sizes = np.concatenate([sizes for _, sizes in read])
        # The turns of each order are in its own order, wherever they are.
        turns = np.repeat(np.arange(len(read)), self.counts)[draw_permutation(self.seed, epoch, Purpose.DATASET, self.num_items)]
        items = np.empty(self.num_items, dtype=np.int64)
        items[np.argsort(turns, kind="stable")] = np.arange(self.num_items)
        bounds = np.concatenate([[0], np.cumsum(sizes[items])])
        starts = np.cumsum(sizes) - sizes
        places = np.repeat(starts[items] - bounds[:-1], sizes[items]) + np.arange(bounds[-1])

        return Plan(rows[places], bounds, epochs[places])


def _share_out(total: int, weights: Sequence[float]) -> Rows:
    """Whole numbers as near to the weights as they come: each at least 1, and ``total`` together."""
    exact = total * np.array(weights, dtype=np.float64) / sum(weights)
    counts = np.maximum(np.floor(exact).astype(np.int64), 1)
    while (rest := total - int(counts.sum())) != 0:
        # Most often a few of the largest remainders; where 1 was too much for some, the largest counts give.
        place = int(np.argmax(exact - counts)) if rest > 0 else int(np.argmax(np.where(counts > 1, counts - exact, -np.inf)))
        counts[place] += 1 if rest > 0 else -1

    return counts


class LengthOrder(Order):
    """Items are batches of rows of similar length, as large as fits; their order is random.

    Rows of equal length change places in every epoch, the sizes of the batches never change.
    """

    def __init__(self, rows: Rows, lengths: Rows, max_num_elements: int, seed: int, max_batch_size: int | None = None) -> None:
        """
        :param rows: (R,) the rows to read.
        :param lengths: (R,) how long each is.
        :param max_num_elements: most elements of a batch when padded to its longest row.
        :param max_batch_size: most rows of a batch; None = no limit.
        :raises RecipeError: a row alone is longer than that.
        """
        self._rows = rows
        self._lengths = lengths
        self._bounds = _cut_batches(np.sort(lengths)[::-1], max_num_elements, max_batch_size or len(lengths))
        super().__init__(len(self._bounds) - 1, seed)

    @override
    def _make_plan(self, epoch: int) -> Plan:
        shuffled = draw_permutation(self.seed, epoch, Purpose.TIES, len(self._rows))
        rows = self._rows[shuffled[np.argsort(-self._lengths[shuffled], kind="stable")]]
        order = draw_permutation(self.seed, epoch, Purpose.ORDER, self.num_items)
        batches = np.split(rows, self._bounds[1:-1])
        sizes = np.diff(self._bounds)[order]
        return Plan(np.concatenate([batches[batch] for batch in order]), np.concatenate([[0], np.cumsum(sizes)]))


def _cut_batches(lengths: Rows, max_num_elements: int, max_batch_size: int) -> Rows:
    """Cut lengths, longest first, into batches; returns where each starts, and the end."""
    if len(lengths) and lengths[0] > max_num_elements:
        raise RecipeError(
            f"`max_num_elements` is {max_num_elements:,}, but the longest sample has {lengths[0]:,} elements: raise it, or crop "
            "samples by `max_sample_size`."
        )
    bounds = [0]
    while bounds[-1] < len(lengths):
        size = min(max_batch_size, max_num_elements // max(1, int(lengths[bounds[-1]])))
        bounds.append(min(len(lengths), bounds[-1] + size))

    return np.array(bounds)


@dataclass(frozen=True)
class Share:
    """The part of an update that one rank computes."""

    rank: int
    """The rank within the data-parallel group."""

    world_size: int
    """The size of that group."""

    num_accumulate: int
    """Forward passes per rank and update."""

    items: int
    """Items per forward pass."""

    @property
    def items_per_update(self) -> int:
        return self.items * self.num_accumulate * self.world_size

    def find_items(self, pass_nr: int) -> tuple[int, int]:
        """Start and stop in the endless sequence of the ``pass_nr``-th forward pass of this rank, from 0."""
        update, micro = divmod(pass_nr, self.num_accumulate)
        start = update * self.items_per_update + (self.rank * self.num_accumulate + micro) * self.items
        return start, start + self.items


def share_batch(batch_size: int, max_batch_size: int | None, *, rank: int, world_size: int, name: str = "batch_size") -> Share:
    """Split ``batch_size`` items per update over the ranks, and over as few forward passes as ``max_batch_size`` allows.

    :param name: how the user's configuration calls ``batch_size``.
    :raises RecipeError: it does not divide.
    """
    per_rank, rest = divmod(batch_size, world_size)
    if rest or per_rank < 1:
        raise RecipeError(
            f"`{name}` ({batch_size}) counts an update over all ranks and must be a multiple of their number ({world_size}), "
            f"for example {max(round(batch_size / world_size), 1) * world_size}."
        )
    if max_batch_size is not None and max_batch_size < 1:
        raise RecipeError(f"`max_batch_size` must be positive or null, but is {max_batch_size}.")
    num_accumulate = 1 if max_batch_size is None else -(-per_rank // max_batch_size)
    if per_rank % num_accumulate:
        raise RecipeError(
            f"Each rank computes {per_rank} samples per update, which `max_batch_size` ({max_batch_size}) splits into "
            f"{num_accumulate} forward passes of unequal size; set `max_batch_size` to a divisor of {per_rank}, or `batch_size` "
            f"to {-(-per_rank // num_accumulate) * num_accumulate * world_size}."
        )

    return Share(rank, world_size, num_accumulate, per_rank // num_accumulate)


class WindowOrder(Order):
    """Items are single rows; those of an update are of similar length.

    An epoch is shuffled and cut into windows of a few updates; only within a window rows are sorted by length, so that who
    meets whom changes in every epoch. The updates come in random order.
    """

    def __init__(self, lengths: Rows, batch_size: int, window: int, seed: int) -> None:
        """
        :param lengths: (R,) of each row.
        :param batch_size: rows per update, over all ranks.
        :param window: updates in a window; 1 = rows of any length meet.
        """
        super().__init__(len(lengths), seed)
        self._lengths = lengths
        self._batch_size = batch_size
        self._window = window

    @override
    def _make_plan(self, epoch: int) -> Plan:
        shuffled = draw_permutation(self.seed, epoch, Purpose.TIES, self.num_items)
        # The first rows complete the update that the last epoch began.
        first = min(-epoch * self.num_items % self._batch_size, self.num_items)
        num_batches = (self.num_items - first) // self._batch_size
        end = first + num_batches * self._batch_size

        rows = shuffled[first:end]
        windows = np.arange(len(rows)) // (self._window * self._batch_size)
        batches = rows[np.lexsort((self._lengths[rows], windows))].reshape(num_batches, self._batch_size)
        batches = batches[draw_permutation(self.seed, epoch, Purpose.ORDER, num_batches)]

        return Plan(np.concatenate([shuffled[:first], batches.ravel(), shuffled[end:]]))
