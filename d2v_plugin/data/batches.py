"""Batches: rows cut into them, their samples read, padded and put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.data.bad_samples import BadSamples, SampleError
from d2v_plugin.data.order import RowBatch, Rows

SampleT = TypeVar("SampleT")

ReadBatch = Callable[[RowBatch], Batch | None]
"""Reads the samples of a batch; None = none of them can be read. Called from many threads."""

Padded = tuple[Tensor, Tensor | None, int | None]
"""Inputs (N, S), the padding mask (N, S) and the length of the shortest; None and None if nothing is padded."""


class Targets(Protocol):
    """Labels of the rows of a split."""

    def stack(self, rows: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """``labels`` and ``label_lengths`` of a :class:`Batch` of these rows."""


def batch_rows(rows: Rows, batch_size: int) -> list[RowBatch]:
    """Cut rows into batches of one size, in order."""
    return [_first_epoch(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]


def batch_by_length(rows: Rows, lengths: Rows, max_num_elements: int | None, max_batch_size: int | None = None) -> list[RowBatch]:
    """Cut rows, in order, into batches as large as fits when padded; a row too long for that comes alone.

    :param rows: (R,) of similar length where they are neighbours, or much is padded.
    :param lengths: (R,) of these rows.
    :param max_num_elements: most elements of a batch, padding included; None = any number.
    """
    bounds, longest = [0], 0
    for place, length in enumerate(lengths.tolist()):
        longest, size = max(longest, length), place + 1 - bounds[-1]
        is_full = max_batch_size is not None and size > max_batch_size
        if size > 1 and (is_full or (max_num_elements is not None and longest * size > max_num_elements)):
            bounds.append(place)
            longest = length

    return [_first_epoch(batch) for batch in np.split(rows, bounds[1:]) if len(batch)]


def _first_epoch(rows: Rows) -> RowBatch:
    return RowBatch(rows, np.zeros_like(rows))


def read_samples(
    batch: RowBatch, bad_samples: BadSamples, read: Callable[[int, int], SampleT]
) -> tuple[list[SampleT], list[int]]:
    """Read the samples of a batch with ``read(row, epoch)``, leaving out those that cannot be read.

    :returns: the samples and their rows, both empty if none can be read.
    """
    samples: list[SampleT] = []
    rows: list[int] = []
    for row, epoch in zip(batch.rows.tolist(), batch.epochs.tolist(), strict=True):
        try:
            samples.append(read(row, epoch))
        except (SampleError, OSError, RuntimeError, ValueError) as error:
            bad_samples.add(row, str(error))
        else:
            rows.append(row)

    return samples, rows


def pad(samples: Sequence[NDArray[Any]], dtype: type[np.generic], *, value: int = 0, before: Sequence[int] = ()) -> Padded:
    """Put samples of different length, N × (S_n,) or N × (S_n, C), into one tensor.

    :param value: stands behind those that are shorter than the longest.
    :param before: stands before each.
    """
    lengths = np.array([len(before) + len(sample) for sample in samples])
    longest, shortest = int(lengths.max()), int(lengths.min())
    padded = np.full((len(samples), longest, *samples[0].shape[1:]), value, dtype=dtype)
    if len(before):
        padded[:, : len(before)] = before
    for place, sample, length in zip(padded, samples, lengths, strict=True):
        place[len(before) : length] = sample
    if longest == shortest:
        return torch.from_numpy(padded), None, None

    return torch.from_numpy(padded), torch.from_numpy(np.arange(longest) >= lengths[:, None]), shortest


def make_batch(modality: Modality, inputs: Padded, rows: Sequence[int], targets: Targets | None = None) -> Batch:
    """Put together what was read of some rows."""
    labels, label_lengths = (None, None) if targets is None else targets.stack(rows)
    return Batch(modality, inputs[0], torch.tensor(rows), *inputs[1:], labels, label_lengths)


def fill_batch(
    modality: Modality,
    places: NDArray[Any],
    batch: RowBatch,
    bad_samples: BadSamples,
    write: Callable[[int, int, NDArray[Any]], None],
    targets: Targets | None = None,
) -> Batch | None:
    """Read samples of one shape, each with ``write(row, epoch, place)`` right into its place.

    :param places: (N, …) for as many samples as the batch has rows.
    """
    rows: list[int] = []

    def read(row: int, epoch: int) -> None:
        # What a sample that cannot be read leaves behind is overwritten by the next.
        write(row, epoch, places[len(rows)])
        rows.append(row)

    read_samples(batch, bad_samples, read)

    return make_batch(modality, (torch.from_numpy(places[: len(rows)]), None, None), rows, targets) if rows else None
