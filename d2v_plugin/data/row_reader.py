"""A split read by row, whole and without augmentation, whether or not it has labels: for features of all samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fairseq2.data.data_pipeline import read_sequence
from numpy.typing import NDArray

from d2v_plugin.core.batch import Batch
from d2v_plugin.data.bad_samples import BadSamples
from d2v_plugin.data.order import RowBatch
from d2v_plugin.data.reader import ReadBatch, build_pipeline


@dataclass(frozen=True)
class RowReader:
    """The samples of a split; a batch's ``ids`` are their numbers here."""

    manifest: Path
    """Where they are listed."""

    lengths: NDArray[np.int64]
    """(R,) samples of sound or tokens; 1 for an image."""

    max_num_elements: int | None
    """The longest length times the number of rows of a batch is at most this; a row longer than that comes alone."""

    bad_samples: BadSamples

    read_batch: ReadBatch

    samples: str = "rows of the manifest"
    """What the samples are, for people."""

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, start: int, stop: int, max_batch_size: int) -> Iterator[Batch]:
        """Read rows [start, stop) in batches of similar length, the longest first; without those that cannot be read.

        :raises RecipeError: too many cannot be read.
        """
        batches = self._form_batches(start, stop, max_batch_size)
        for batch in build_pipeline(read_sequence(batches), self.read_batch):
            self.bad_samples.raise_if_too_many()
            yield batch
        self.bad_samples.raise_if_too_many()

    def _form_batches(self, start: int, stop: int, max_batch_size: int) -> list[RowBatch]:
        rows = start + np.argsort(-self.lengths[start:stop], kind="stable")
        batches, first = [], 0
        while first < len(rows):
            size = max_batch_size
            if self.max_num_elements is not None:
                size = min(size, max(1, self.max_num_elements // max(1, int(self.lengths[rows[first]]))))
            chosen = rows[first : first + size]
            batches.append(RowBatch(chosen, np.zeros_like(chosen)))
            first += size

        return batches
