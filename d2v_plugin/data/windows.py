"""Batches of samples of similar length, for fine-tuning: as many samples in every update, little padding."""

from __future__ import annotations

import numpy as np
from typing_extensions import override

from d2v_plugin.data.draws import Purpose, draw_permutation
from d2v_plugin.data.order import Order, Rows


class WindowOrder(Order[Rows]):
    """Units are single rows; those of an update are of similar length.

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
    def _make_plan(self, epoch: int) -> Rows:
        shuffled = draw_permutation(self.seed, epoch, Purpose.TIES, self.num_units)
        # The first rows complete the update that the last epoch began.
        first = min(-epoch * self.num_units % self._batch_size, self.num_units)
        num_batches = (self.num_units - first) // self._batch_size
        end = first + num_batches * self._batch_size

        rows = shuffled[first:end]
        windows = np.arange(len(rows)) // (self._window * self._batch_size)
        batches = rows[np.lexsort((self._lengths[rows], windows))].reshape(num_batches, self._batch_size)
        batches = batches[draw_permutation(self.seed, epoch, Purpose.ORDER, num_batches)]

        return np.concatenate([shuffled[:first], batches.ravel(), shuffled[end:]])

    @override
    def _rows_of(self, plan: Rows, start: int, stop: int) -> Rows:
        return plan[start:stop]
