"""Readers: endless batches in a given order, and one pass over a split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Final

from fairseq2.data.data_pipeline import DataPipeline, read_sequence
from fairseq2.datasets import DataPipelineReader, DataReader, SyncMode
from fairseq2.device import Device
from fairseq2.gang import Gangs
from fairseq2.recipe.error import RecipeError
from typing_extensions import Self, override

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.log import log
from d2v_plugin.core.remote import place
from d2v_plugin.data.bad_samples import BadSamples
from d2v_plugin.data.batches import ReadBatch
from d2v_plugin.data.composed_readers import WrappedReader
from d2v_plugin.data.mixture import Mixture
from d2v_plugin.data.order import Order, RowBatch, Share
from d2v_plugin.data.pipeline import build_pipeline
from d2v_plugin.data.store_reading import Locate, ReadAhead

DATA_KEY: Final = "data"
"""In a reader's state: the hash of what it reads."""

# A run that is asked to stop looks at so many more batches for one that can be read; most often there is one.
_PATIENCE: Final = 10


class SearchStoppedError(Exception):
    """A run was asked to stop while nothing of what it read could be used."""


class TrainReader(DataReader[Batch]):
    """Endless batches in a given order.

    All randomness is stateless, so the position alone restores the reader: with any number of threads or ranks the next
    batches are the ones that would have come. fairseq2's own pipeline state would hold decoded samples and one rank's view.
    """

    def __init__(
        self,
        order: Order,
        share: Share,
        gangs: Gangs,
        read: ReadBatch,
        bad_samples: BadSamples,
        *,
        data_hash: str = "",
        mixture: Mixture | None = None,
        to_fetch: Locate | None = None,
    ) -> None:
        """
        :param bad_samples: of the samples that ``read`` reads; also names them, for reports.
        :param data_hash: of the rows that are read, by which a resumed run knows them again; empty = it does not look.
        :param to_fetch: the place of each row on a store, which is asked ahead; None = there is nothing to fetch.
        """
        self.mixture = mixture
        """The datasets it reads from; None = it is one."""
        self._data_hash = data_hash
        self._file = _look_at(bad_samples.split)
        self._order = order
        self._share = share
        self._gangs = gangs
        self._bad_samples = bad_samples
        self._is_stopped = Event()
        read = _pin_for(gangs.device, read)
        self._read_pass: Callable[[int], Batch | None] = partial(_read_pass, order, share, read, bad_samples, self._is_stopped)
        if to_fetch is not None:
            ahead = ReadAhead(lambda pass_nr: order.read(*share.find_items(pass_nr)).rows, to_fetch)
            self._read_pass = partial(_fetch_and_read, ahead, self._read_pass)
        self._start(0)

    def _start(self, position: int) -> None:
        per_update = self._share.items_per_update
        if position % per_update:
            raise RecipeError(
                f"The checkpoint stands at position {position}, which is no multiple of the {per_update} per update now "
                "configured. Resume with the batch size it was written with."
            )
        self._position = position
        source = DataPipeline.count(position // per_update * self._share.num_accumulate)
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
        """Tell where a sample comes from, given its id, as reports name it."""
        return self._bad_samples.name_sample(sample)

    def stop_search(self) -> None:
        """See :func:`d2v_plugin.data.composed_readers.stop_search`."""
        self._is_stopped.set()

    @override
    def reset(self) -> None:
        self._start(0)

    @override
    def state_dict(self) -> dict[str, object]:
        self._warn_if_changed()
        # The keys are those of all checkpoints, of times when items were called units.
        state = {"position": self._position, "units_per_epoch": self._order.num_items, "seed": self._order.seed}
        return {**state, DATA_KEY: self._data_hash}

    def _warn_if_changed(self) -> None:
        """Say now what resuming would say when it is too late."""
        if not self._data_hash or self._file == (now := _look_at(self._bad_samples.split)):
            return
        self._file = now
        if self._gangs.root.rank == 0:
            log.warning(
                "{} was changed while this run uses it. The run goes on with the rows that it read at its start; without them it "
                "will not resume.", self._bad_samples.split
            )  # fmt: skip

    @override
    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """:raises RecipeError: the state belongs to other data, another seed or another batch size."""
        for name, now in (("units_per_epoch", self._order.num_items), ("seed", self._order.seed)):
            if state_dict[name] != now:
                raise RecipeError(
                    f"The checkpoint was written with `{name}` {state_dict[name]}, but it is {now} now: the manifest "
                    f"({self._bad_samples.split}), how it is batched, or the seed has changed. Start a new run from its model "
                    "instead of resuming."
                )
        if (then := state_dict.get(DATA_KEY)) is None:
            message = "The checkpoint does not say what it read: an older version wrote it. {} is taken for the same as then."
            log.warning(message, self._bad_samples.split)
        elif then != self._data_hash:
            raise RecipeError(
                f"{self._bad_samples.split} has changed since the checkpoint was written: its rows are other ones, or in another "
                "order. Restore it, or add --accept-changed-data to go on at the same place of the new rows."
            )
        position = state_dict["position"]
        assert isinstance(position, int)
        self._start(position)

    @property
    @override
    def num_accumulate(self) -> int:
        return self._share.num_accumulate


def _look_at(path: Path) -> tuple[int, ...] | None:
    """What changes when a file is written or replaced; None = it is gone."""
    try:
        status = place(path).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class LabelledReader(WrappedReader[Batch]):
    """One ordered pass over a split; each rank reads every ``world_size``-th batch, nothing is dropped."""

    def __init__(
        self,
        batches: list[RowBatch],
        gangs: Gangs,
        read: ReadBatch,
        bad_samples: BadSamples,
        *,
        to_fetch: Locate | None = None,
    ) -> None:
        """:param to_fetch: as for :class:`TrainReader`."""
        read = _pin_for(gangs.device, read)

        def read_or_end(batch: RowBatch) -> Batch | None:
            if (found := read(batch)) is None:
                # The pipeline goes on to the next by itself.
                bad_samples.raise_if_too_many()
            return found

        pipeline = read_batches(batches[gangs.dp.rank :: gangs.dp.size], read_or_end, to_fetch)
        super().__init__(DataPipelineReader(pipeline, gangs, sync_mode=SyncMode.UNTIL_LAST))
        self._bad_samples = bad_samples

    @override
    def __next__(self) -> list[Batch]:
        try:
            return super().__next__()
        finally:
            # Also at the end: the last batches may have been bad.
            self._bad_samples.raise_if_too_many()

    def name_sample(self, modality: Modality, sample: int) -> str:
        """See :func:`d2v_plugin.data.composed_readers.name_sample`."""
        return self._bad_samples.name_sample(sample)


def read_batches(batches: Sequence[RowBatch], read: ReadBatch, to_fetch: Locate | None) -> DataPipeline:
    """A pipeline over given batches.

    :param to_fetch: as for :class:`TrainReader`.
    """
    if to_fetch is None:
        return build_pipeline(read_sequence(batches), read)
    ahead = ReadAhead(lambda number: batches[number].rows if number < len(batches) else None, to_fetch)
    numbers = read_sequence(list(range(len(batches))))

    return build_pipeline(numbers, partial(_fetch_and_read, ahead, lambda number: read(batches[number])))


def _fetch_and_read(ahead: ReadAhead, read: Callable[[int], Batch | None], pass_nr: int) -> Batch | None:
    ahead(pass_nr)
    return read(pass_nr)


def _read_pass(order: Order, share: Share, read: ReadBatch, bad_samples: BadSamples, is_stopped: Event, pass_nr: int) -> Batch:
    """Read a forward pass of one rank. No method of the reader, which the native pipeline would keep alive for ever."""
    start, stop = share.find_items(pass_nr)
    first = start
    update = pass_nr // share.num_accumulate
    while (batch := read(replace(order.read(start, stop), update=update))) is None:
        # fairseq2 would wait for ever for a rank that computes nothing.
        bad_samples.raise_if_too_many()
        if stop - first >= 2 * order.num_items:
            # Every item was among them: those of one whole epoch, wherever it began.
            bad_samples.refuse_all()
        if is_stopped.is_set() and stop - first >= _PATIENCE * share.items:
            raise SearchStoppedError()
        log.warning("All samples of a batch are bad; the next batch of the sequence is repeated in its place.")
        start, stop = stop, stop + share.items
    return batch


def _pin_for(device: Device, read: ReadBatch) -> ReadBatch:
    """Let the threads that read pin what a GPU will copy."""
    if device.type != "cuda":
        return read

    def read_pinned(rows: RowBatch) -> Batch | None:
        if (batch := read(rows)) is not None:
            batch.pin()
        return batch

    return read_pinned
