"""A model with its head, at work on batches: what is read becomes answers, recordings of any length included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from fairseq2.data.data_pipeline import read_sequence
from torch import Tensor

from d2v_plugin.core.batch import Batch
from d2v_plugin.core.log import log
from d2v_plugin.criteria.supervised.base import SupervisedCriterion
from d2v_plugin.data.bad_samples import SampleError
from d2v_plugin.data.batches import batch_by_length
from d2v_plugin.data.order import RowBatch
from d2v_plugin.data.pipeline import build_pipeline
from d2v_plugin.extraction.chunks import SAMPLE_RATE, count_samples, find_long, iterate_chunks
from d2v_plugin.inference.reading import Reader
from d2v_plugin.inference.samples import Samples
from d2v_plugin.models.base import EncoderModel, Features
from d2v_plugin.scoring.answers import Answer


@dataclass(frozen=True)
class SampleBatches:
    """Reads rows in batches, in threads; keeps account of those that cannot be read."""

    samples: Samples
    reader: Reader
    batch_size: int

    dtype: torch.dtype = torch.float32
    """Of waveforms and images: that of the model."""

    faults: dict[int, str] = field(default_factory=dict)
    """Why a row cannot be read."""

    def read(self, start: int, stop: int) -> Iterator[Batch]:
        """Read rows [start, stop) in batches of similar length, the longest first; a batch's ids are its rows."""
        lengths = np.array([self.samples.measure(row) for row in range(start, stop)], dtype=np.int64)
        order = np.argsort(-lengths, kind="stable")
        batches = batch_by_length(start + order, lengths[order], self.reader.max_num_elements, self.batch_size)

        yield from build_pipeline(read_sequence(batches), self._read_batch)

    def refuse_nothing(self) -> None:
        """
        :raises SampleError: no sample could be read.
        """
        if self.faults and len(self.faults) == len(self.samples):
            first = min(self.faults)
            place = self.samples.place_of(first)
            raise SampleError(f"None of {len(self.samples):,} input(s) can be read: {place}: {self.faults[first]}")

    def _read_batch(self, batch: RowBatch) -> Batch | None:
        found: dict[int, Any] = {}
        for row in batch.rows.tolist():
            try:
                found[row] = self.samples.read(row)
            except (SampleError, OSError, RuntimeError, ValueError) as error:
                self.faults[row] = " ".join(str(error).split()) or type(error).__name__
                log.warning("{} is left out: {}", self.samples.place_of(row), self.faults[row])

        if not found:
            return None
        read = self.reader.collate(list(found.values()), list(found))
        if read.inputs.is_floating_point():
            read.inputs = read.inputs.to(self.dtype)

        return read


@dataclass(frozen=True)
class Engine:
    """Answers batches; the same sample gets the same answer in any batch."""

    model: EncoderModel
    criterion: SupervisedCriterion[Any]
    device: torch.device

    chunk_seconds: float | None = None
    """Recordings longer than this are computed in chunks; None = all are computed whole."""

    amp: bool = False
    """Whether to compute in bfloat16."""

    sample_rate: int = SAMPLE_RATE
    """Of the recordings, as they are read."""

    def answer(self, batch: Batch) -> Sequence[Answer]:
        """One answer for each sample."""
        batch.to(self.device)
        chunk = count_samples(self.chunk_seconds, self.sample_rate)
        if chunk is not None and (recordings := find_long(batch, chunk)):
            return [self._answer_long(waveform.unsqueeze(0), chunk) for waveform in recordings]
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.amp):
            features = self.criterion.encode(self.model, batch)
            logits = self.criterion.apply_head(features)

        return self.criterion.answer(logits, features.padding_mask)

    def _answer_long(self, waveform: Tensor, chunk: int) -> Answer:
        """:param waveform: (1, T), or (1, T, C) of several channels."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.amp):
            chunks = iterate_chunks(self.model, waveform, chunk)
            if self.criterion.framewise:
                logits = torch.cat([self.criterion.apply_head(chunk) for chunk in chunks], dim=1)
            else:
                parts = [(chunk.x, chunk.extra_tokens) for chunk in chunks]
                x = torch.cat([part for part, _ in parts], dim=1)
                # What stands for the whole is the mean of what stands for its parts.
                extra = [tokens for _, tokens in parts if tokens is not None]
                logits = self.criterion.apply_head(Features(x, None, [x], torch.stack(extra).mean(dim=0) if extra else None))
        (answer,) = self.criterion.answer(logits, None)

        return answer


def answer_rows(batches: SampleBatches, engine: Engine, start: int, stop: int) -> Iterator[tuple[int, Answer]]:
    """The answers of rows [start, stop) that can be read, in the order in which they are computed."""
    for batch in batches.read(start, stop):
        yield from zip(batch.ids.tolist(), engine.answer(batch), strict=True)
