"""A split read by row, whole and without augmentation, whether or not it has labels: for features of all samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from d2v_plugin.core.batch import Batch
from d2v_plugin.data.bad_samples import BadSamples
from d2v_plugin.data.batches import ReadBatch, batch_by_length
from d2v_plugin.data.order import RowBatch, Rows
from d2v_plugin.data.reader import read_batches
from d2v_plugin.data.store_reading import Locate


@dataclass(frozen=True)
class RowReader:
    """The samples of a split; a batch's ``ids`` are their numbers here."""

    lengths: Rows
    """(R,) samples of sound or tokens; 1 for an image."""

    max_num_elements: int | None
    """The longest length times the number of rows of a batch is at most this; a row longer than that comes alone."""

    read_batch: ReadBatch

    bad_samples: BadSamples

    samples: str = "rows of the manifest"
    """What the samples are, for people."""

    to_fetch: Locate | None = None
    """The place of each on a store, which is asked ahead; None = there is nothing to fetch."""

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def manifest(self) -> Path:
        """The manifest that lists the samples."""
        return self.bad_samples.split

    def read(self, start: int, stop: int, max_batch_size: int) -> Iterator[Batch]:
        """Read rows [start, stop) in batches of similar length, the longest first; without those that cannot be read.

        :raises RecipeError: too many cannot be read.
        """
        for batches in self.read_ranges([(start, stop)], max_batch_size):
            yield from batches

    def read_ranges(self, ranges: Sequence[tuple[int, int]], max_batch_size: int) -> Iterator[Iterator[Batch]]:
        """As :meth:`read` for one range after the other, each to its end; while one is used the next is being read.

        :param ranges: of rows, ascending.
        """
        cut = [batch for start, stop in ranges for batch in self._cut(start, stop, max_batch_size)]
        batches = iter(read_batches(cut, self.read_batch, self.to_fetch))
        ahead = next(batches, None)

        def read_before(stop: int) -> Iterator[Batch]:
            nonlocal ahead
            while ahead is not None and int(ahead.ids[0]) < stop:
                self.bad_samples.raise_if_too_many()
                yield ahead
                ahead = next(batches, None)
            self.bad_samples.raise_if_too_many()

        for _, stop in ranges:
            yield read_before(stop)

    def _cut(self, start: int, stop: int, max_batch_size: int) -> list[RowBatch]:
        rows = start + np.argsort(-self.lengths[start:stop], kind="stable")
        return batch_by_length(rows, self.lengths[rows], self.max_num_elements, max_batch_size)
