"""A split read by row, whole and without augmentation, whether or not it has labels: for features of all samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from d2v_plugin.core.batch import Batch
from d2v_plugin.data.bad_samples import BadSamples
from d2v_plugin.data.batches import ReadBatch, batch_by_length
from d2v_plugin.data.order import Rows
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
        rows = start + np.argsort(-self.lengths[start:stop], kind="stable")
        batches = batch_by_length(rows, self.lengths[rows], self.max_num_elements, max_batch_size)
        for batch in read_batches(batches, self.read_batch, self.to_fetch):
            self.bad_samples.raise_if_too_many()
            yield batch
        self.bad_samples.raise_if_too_many()
