"""What the tasks of fine-tuning on recordings share: whole recordings, padded to the longest of their batch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np
import torch
from fairseq2.datasets import DataReader
from fairseq2.gang import Gangs
from fairseq2.logging import log
from fairseq2.recipe.error import RecipeError
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.data.audio import AudioReadingConfig, Waveform, length_at, pad_and_stack, read_recording
from d2v_plugin.data.bad_samples import BadSampleConfig, BadSamples
from d2v_plugin.data.dataset import AudioManifest, expect_dataset
from d2v_plugin.data.manifest import Manifest
from d2v_plugin.data.order import LengthOrder, RowBatch, share_batch
from d2v_plugin.data.random import Purpose, draw_uniform
from d2v_plugin.data.reader import LabelledReader, ReadBatch, TrainReader, read_samples
from d2v_plugin.data.row_reader import RowReader
from d2v_plugin.tasks.audio import describe, open_recordings, read_lengths
from d2v_plugin.tasks.base import Task


class Targets(Protocol):
    """What the rows of a split are labelled with."""

    def stack(self, rows: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """``labels`` and ``label_lengths`` of a :class:`Batch` of these rows."""


@dataclass(kw_only=True)
class LabelledAudioConfig:
    """Settings of all tasks of fine-tuning on recordings."""

    split: str = "train"
    """The manifest to train on."""

    batches_per_update: int = 8
    """Length batches per update, over all ranks; each is one forward pass."""

    max_num_elements: int = 3_200_000
    """Most samples of sound in one forward pass, padding included."""

    max_sample_size: int | None = None
    """Longest recording to train on, in samples; None = any."""

    audio: AudioReadingConfig = field(default_factory=AudioReadingConfig)
    """How recordings become waveforms."""

    bad_samples: BadSampleConfig = field(default_factory=BadSampleConfig)
    """How many unreadable recordings a run puts up with."""


class LabelledAudioTask(Task):
    """Reads an ``audio_manifest`` with labels."""

    modality = Modality.AUDIO

    crops: ClassVar[bool]
    """Whether recordings longer than ``max_sample_size`` are cropped, at a new random place in every epoch, or left out."""

    def __init__(self, config: LabelledAudioConfig) -> None:
        self.config = config

    @abstractmethod
    def read_targets(self, dataset: AudioManifest, split: str) -> Targets:
        """
        :raises RecipeError: labels are missing or wrong; names all of them.
        """

    @override
    def create_train_reader(self, dataset: object, gangs: Gangs, seed: int) -> DataReader[Batch]:
        config = self.config
        recordings = expect_dataset(dataset, AudioManifest)
        manifest, targets = recordings.split(config.split), self.read_targets(recordings, config.split)
        lengths = read_lengths(manifest, config.audio)
        rows = self._choose_rows(manifest, lengths)
        longest = lengths if config.max_sample_size is None else np.minimum(lengths, config.max_sample_size)
        share = share_batch(config.batches_per_update, 1, rank=gangs.dp.rank, world_size=gangs.dp.size, name="batches_per_update")
        bad_samples = BadSamples(manifest.path, len(manifest), config.bad_samples, self.bad_samples_report)

        def read_row(row: int, epoch: int) -> Waveform:
            recording = describe(manifest, row)
            spare = length_at(recording.size, recording.rate, config.audio.sample_rate) - int(longest[row])
            if spare <= 0:
                return read_recording(recording, config.audio)
            (place,) = draw_uniform(seed, epoch, Purpose.CROP, row, 1)

            return read_recording(recording, config.audio, int(place * (spare + 1)), int(longest[row]))

        order = LengthOrder(rows, longest[rows], config.max_num_elements, seed)

        return TrainReader(order, share, _create_read(manifest, targets, bad_samples, read_row), gangs, bad_samples)

    @override
    def create_labelled_reader(self, dataset: object, gangs: Gangs, split: str) -> DataReader[Batch]:
        config = self.config
        recordings = expect_dataset(dataset, AudioManifest)
        manifest, targets = recordings.split(split), self.read_targets(recordings, split)
        bad_samples = BadSamples(manifest.path, len(manifest), config.bad_samples, self.bad_samples_report)

        def read_row(row: int, epoch: int) -> Waveform:
            return read_recording(describe(manifest, row), config.audio)

        batches = _batch_by_length(read_lengths(manifest, config.audio), config.max_num_elements)

        return LabelledReader(batches, _create_read(manifest, targets, bad_samples, read_row), gangs, bad_samples)

    @override
    def open_rows(self, dataset: object, split: str) -> RowReader:
        config = self.config
        manifest = expect_dataset(dataset, AudioManifest).split(split)
        bad_samples = BadSamples(manifest.path, len(manifest), config.bad_samples, self.bad_samples_report)

        return open_recordings(manifest, config.audio, config.max_num_elements, bad_samples)

    def _choose_rows(self, manifest: Manifest, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        most = self.config.max_sample_size
        if self.crops or most is None:
            return np.arange(len(lengths))
        rows = np.flatnonzero(lengths <= most)
        if not len(rows):
            raise RecipeError(
                f"All recordings of {manifest.path} are longer than `task.config.max_sample_size` ({most:,}); the shortest has "
                f"{lengths.min():,} samples."
            )
        if len(rows) < len(lengths):
            left_out = len(lengths) - len(rows)
            log.info("Left out {:,} recordings, which are longer than `max_sample_size` ({:,}).", left_out, most)

        return rows


class ReadRow(Protocol):
    """Reads the waveform of a row."""

    def __call__(self, row: int, epoch: int) -> Waveform: ...


def _create_read(manifest: Manifest, targets: Targets, bad_samples: BadSamples, read_row: ReadRow) -> ReadBatch:
    def read(batch: RowBatch) -> Batch | None:
        waveforms, found = read_samples(batch, manifest.name_of, bad_samples, read_row)
        if not waveforms:
            return None
        inputs, padding_mask, min_length = pad_and_stack(waveforms)
        labels, label_lengths = targets.stack(found)

        return Batch(Modality.AUDIO, inputs, torch.tensor(found), padding_mask, min_length, labels, label_lengths)

    return read


def _batch_by_length(lengths: NDArray[np.int64], max_num_elements: int) -> list[RowBatch]:
    """Batches of rows of similar length, longest first, as large as fits when padded; a row too long for that comes alone."""
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        stop = start + max(1, max_num_elements // max(1, int(lengths[order[start]])))
        rows = order[start:stop]
        batches.append(RowBatch(rows, np.zeros_like(rows)))
        start = stop

    return batches
