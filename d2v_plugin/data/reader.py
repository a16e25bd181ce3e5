"""From rows to batches: the native pipeline, and what a checkpoint remembers of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from fairseq2.data.data_pipeline import DataPipeline, DataPipelineBuilder, read_sequence
from fairseq2.datasets import DataPipelineReader, DataReader, SyncMode
from fairseq2.gang import Gangs
from fairseq2.logging import log
from fairseq2.recipe.error import RecipeError
from threadpoolctl import ThreadpoolController
from typing_extensions import Self, override

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.data.bad_samples import BadSamples, SampleError
from d2v_plugin.data.order import Order, RowBatch, Share

SampleT = TypeVar("SampleT")

ReadBatch = Callable[[RowBatch], Batch | None]

_PREFETCH = 2


class TrainReader(DataReader[Batch]):
    """Endless batches in a given order.

    All randomness is stateless, so the position alone restores the reader: with any number of threads or ranks the next
    batches are the ones that would have come. fairseq2's own pipeline state would hold decoded samples and one rank's view.
    """

    def __init__(
        self,
        order: Order[Any],
        share: Share,
        read: ReadBatch,
        gangs: Gangs,
        bad_samples: BadSamples,
        *,
        name: Callable[[int], str] = str,
    ) -> None:
        """:param name: tells which sample an id is, for reports."""
        self._order = order
        self._share = share
        self._read_pass = _PassReader(order, share, read, bad_samples)
        self._gangs = gangs
        self._bad_samples = bad_samples
        self._name = name
        self._start(0)

    def _start(self, unit: int) -> None:
        per_update = self._share.items_per_update
        if unit % per_update:
            raise RecipeError(
                f"The checkpoint stands at position {unit}, which is no multiple of the {per_update} per update now configured. "
                "Resume with the batch size it was written with."
            )
        self._position = unit
        source = DataPipeline.count(unit // per_update * self._share.num_accumulate)
        # Every rank yields without end, so there is nothing to agree on between ranks.
        self._reader: DataPipelineReader[Batch] = DataPipelineReader(
            build_pipeline(source, self._read_pass), self._gangs, num_accumulate=self._share.num_accumulate, sync=False
        )

    @override
    def __iter__(self) -> Self:
        return self

    @override
    def __next__(self) -> list[Batch]:
        batches = next(self._reader)
        self._bad_samples.raise_if_too_many()
        self._position += self._share.items_per_update

        return batches

    def name_sample(self, modality: Modality, sample: int) -> str:
        """Where a sample comes from, given its id, as reports name it."""
        return f"{self._bad_samples.split}:{self._name(sample)}"

    @override
    def reset(self) -> None:
        self._start(0)

    @override
    def state_dict(self) -> dict[str, object]:
        return {"position": self._position, "units_per_epoch": self._order.num_items, "seed": self._order.seed}

    @override
    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """:raises RecipeError: the state belongs to other data, another seed or another batch size."""
        for name, now in (("units_per_epoch", self._order.num_items), ("seed", self._order.seed)):
            if state_dict[name] != now:
                raise RecipeError(
                    f"The checkpoint was written with `{name}` {state_dict[name]}, but it is {now} now: the manifest, how it is "
                    "batched, or the seed has changed. Start a new run from its model instead of resuming."
                )
        position = state_dict["position"]
        assert isinstance(position, int)
        self._start(position)

    @property
    @override
    def num_accumulate(self) -> int:
        return self._share.num_accumulate


def name_sample(reader: DataReader[Batch], modality: Modality, sample: int) -> str:
    """Where a sample of a training reader comes from, given its id; the id alone if the reader does not tell."""
    name = getattr(reader, "name_sample", None)

    return str(sample) if name is None else name(modality, sample)


class LabelledReader(DataReader[Batch]):
    """One ordered pass over a split; each rank reads every ``world_size``-th batch, nothing is dropped."""

    def __init__(self, batches: list[RowBatch], read: ReadBatch, gangs: Gangs, bad_samples: BadSamples) -> None:
        pipeline = build_pipeline(read_sequence(batches[gangs.dp.rank :: gangs.dp.size]), read)
        self._reader: DataPipelineReader[Batch] = DataPipelineReader(pipeline, gangs, sync_mode=SyncMode.UNTIL_LAST)
        self._bad_samples = bad_samples

    @override
    def __iter__(self) -> Self:
        return self

    @override
    def __next__(self) -> list[Batch]:
        batches = next(self._reader)
        self._bad_samples.raise_if_too_many()

        return batches

    @override
    def reset(self) -> None:
        self._reader.reset()

    @override
    def state_dict(self) -> dict[str, object]:
        return self._reader.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        self._reader.load_state_dict(state_dict)

    @property
    @override
    def num_accumulate(self) -> int:
        return 1


class _PassReader:
    """Reads the forward passes of one rank. No method of the reader: the native pipeline would keep it alive for ever."""

    def __init__(self, order: Order[Any], share: Share, read: ReadBatch, bad_samples: BadSamples) -> None:
        self._order = order
        self._share = share
        self._read = read
        self._bad_samples = bad_samples

    def __call__(self, pass_nr: int) -> Batch:
        start, stop = self._share.find_items(pass_nr)
        while (batch := self._read(self._order.read(start, stop))) is None:
            # fairseq2 would wait for ever for a rank that computes nothing.
            self._bad_samples.raise_if_too_many()
            log.warning("All samples of a batch are bad; the next batch of the sequence is repeated in its place.")
            start, stop = stop, stop + self._share.items

        return batch


def build_pipeline(source: DataPipelineBuilder, read: Callable[[Any], Batch | None]) -> DataPipeline:
    """The native pipeline: read whole batches in threads, in order, a few ahead.

    A thread works on a whole batch: decoding and resizing release the interpreter lock, and a call per batch costs less
    than a call per sample. The source must be native: fairseq2 0.8.1 frees a Python iterator without holding that lock.
    """
    openmp = ThreadpoolController().select(user_api="openmp")

    def read_alone(unit: Any) -> Batch | None:
        # Keep PyTorch from starting threads of its own within each of the pipeline's, which takes a third more processor time.
        # It sets their number when a thread first asks for it: what is set before has no effect. Nothing is remembered, since
        # the pipeline's threads are new to Python at every call.
        torch.get_num_threads()
        openmp.limit(limits=1)

        return read(unit)

    return source.map(read_alone, num_parallel_calls=count_threads()).filter(_is_batch).prefetch(_PREFETCH).and_return()


def count_threads() -> int:
    """The processors this process may use, shared fairly with the other ranks of this machine."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def batch_rows(rows: np.ndarray[Any, np.dtype[np.int64]], batch_size: int) -> list[RowBatch]:
    """Cut rows into batches, in order."""
    return [
        RowBatch(rows[start : start + batch_size], np.zeros_like(rows[start : start + batch_size]))
        for start in range(0, len(rows), batch_size)
    ]


def read_samples(
    batch: RowBatch, name: Callable[[int], str], bad_samples: BadSamples, read: Callable[[int, int], SampleT]
) -> tuple[list[SampleT], list[int]]:
    """Read the samples of a batch with ``read(row, epoch)``, leaving out those that cannot be read.

    :param name: tells which sample a row is, for the report.
    :returns: the samples and their rows, both empty if none can be read.
    """
    samples: list[SampleT] = []
    rows: list[int] = []
    for row, epoch in zip(batch.rows.tolist(), batch.epochs.tolist(), strict=True):
        try:
            samples.append(read(row, epoch))
        except (SampleError, OSError, RuntimeError, ValueError) as error:
            bad_samples.add(row, name(row), str(error))
        else:
            rows.append(row)

    return samples, rows


def _is_batch(batch: Batch | None) -> bool:
    return batch is not None
