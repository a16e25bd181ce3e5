"""Audio: pre-training batches, and labelled ones for probes."""

from __future__ import annotations

from dataclasses import dataclass, field

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
from d2v_plugin.data.audio import AudioReadingConfig, Recording, Waveform, length_at, pad_and_stack, read_recording
from d2v_plugin.data.bad_samples import BadSampleConfig, BadSamples
from d2v_plugin.data.buffers import Buffers
from d2v_plugin.data.dataset import AudioManifest, expect_dataset
from d2v_plugin.data.manifest import Manifest
from d2v_plugin.data.order import LengthOrder, RowBatch, share_batch
from d2v_plugin.data.random import Purpose, draw_uniform
from d2v_plugin.data.reader import LabelledReader, TrainReader, read_samples
from d2v_plugin.data.row_reader import RowReader
from d2v_plugin.tasks.base import Task


@dataclass(kw_only=True)
class AudioPretrainingConfig:
    """Settings of ``audio_pretraining``."""

    split: str = "train"
    """The manifest to train on."""

    batches_per_update: int = 8
    """Length batches per update, over all ranks; each is one forward pass."""

    max_num_elements: int = 1_000_000
    """Most samples of sound in one forward pass."""

    min_sample_size: int = 32_000
    """Shorter recordings are left out."""

    max_sample_size: int = 320_000
    """Longer recordings are cropped to this, at a new random place in every epoch."""

    audio: AudioReadingConfig = field(default_factory=AudioReadingConfig)
    """How recordings become waveforms."""

    bad_samples: BadSampleConfig = field(default_factory=BadSampleConfig)
    """How many unreadable recordings a run puts up with."""


class AudioPretrainingTask(Task):
    """Reads an ``audio_manifest``.

    As in the original, batches hold recordings of similar length and are cropped, at random, to their shortest: nothing is
    padded in pre-training.
    """

    modality = Modality.AUDIO

    def __init__(self, config: AudioPretrainingConfig) -> None:
        self.config = config

    @override
    def create_train_reader(self, dataset: object, gangs: Gangs, seed: int) -> DataReader[Batch]:
        config = self.config
        manifest = expect_dataset(dataset, AudioManifest).split(config.split)
        lengths = read_lengths(manifest, config.audio)
        rows = np.flatnonzero(lengths >= config.min_sample_size)
        if len(rows) < len(lengths):
            log.info("Left out {:,} of {:,} recordings, which are shorter than `min_sample_size` ({:,}).", len(lengths) - len(rows), len(lengths), config.min_sample_size)  # fmt: skip  # noqa: E501
        if not len(rows):
            raise RecipeError(
                f"{manifest.path} has no recording of at least `min_sample_size` ({config.min_sample_size:,}) samples; the "
                f"longest has {lengths.max():,}."
            )
        lengths = np.minimum(lengths, config.max_sample_size)
        share = share_batch(config.batches_per_update, 1, rank=gangs.dp.rank, world_size=gangs.dp.size, name="batches_per_update")
        bad_samples = BadSamples(manifest.path, len(manifest), config.bad_samples, self.bad_samples_report)

        buffers = Buffers()

        def read(batch: RowBatch) -> Batch | None:
            shortest = int(lengths[batch.rows].min())
            places = buffers.take(len(batch.rows), shortest)
            found: list[int] = []

            def read_crop(row: int, epoch: int) -> None:
                recording = describe(manifest, row)
                spare = length_at(recording.size, recording.rate, config.audio.sample_rate) - shortest
                (place,) = draw_uniform(seed, epoch, Purpose.CROP, row, 1)

                # What a recording that cannot be read leaves behind is overwritten by the next.
                read_recording(recording, config.audio, int(place * (spare + 1)), shortest, places[len(found)])
                found.append(row)

            read_samples(batch, manifest.name_of, bad_samples, read_crop)
            if not found:
                return None

            return Batch(Modality.AUDIO, torch.from_numpy(places[: len(found)]), torch.tensor(found))

        order = LengthOrder(rows, lengths[rows], config.max_num_elements, seed)

        return TrainReader(order, share, read, gangs, bad_samples, name=manifest.name_of)

    @override
    def create_labelled_reader(self, dataset: object, gangs: Gangs, split: str) -> DataReader[Batch]:
        recordings = expect_dataset(dataset, AudioManifest)
        rows = self._open(recordings.split(split), recordings.read_labels(split))

        batches = _batch_in_order(rows.lengths, self.config.max_num_elements)

        return LabelledReader(batches, rows.read_batch, gangs, rows.bad_samples)

    @override
    def open_rows(self, dataset: object, split: str) -> RowReader:
        return self._open(expect_dataset(dataset, AudioManifest).split(split), labels=None)

    def _open(self, manifest: Manifest, labels: Tensor | None) -> RowReader:
        config = self.config
        bad_samples = BadSamples(manifest.path, len(manifest), config.bad_samples, self.bad_samples_report)

        return open_recordings(manifest, config.audio, config.max_num_elements, bad_samples, labels)


def open_recordings(
    manifest: Manifest, audio: AudioReadingConfig, max_num_elements: int, bad_samples: BadSamples, labels: Tensor | None = None
) -> RowReader:
    """The recordings of a manifest by row, whole."""

    def read_whole(row: int, epoch: int) -> Waveform:
        return read_recording(describe(manifest, row), audio)

    def read(batch: RowBatch) -> Batch | None:
        waveforms, found = read_samples(batch, manifest.name_of, bad_samples, read_whole)
        if not waveforms:
            return None
        inputs, padding_mask, min_length = pad_and_stack(waveforms)
        ids = torch.tensor(found)

        return Batch(Modality.AUDIO, inputs, ids, padding_mask, min_length, None if labels is None else labels[ids])

    return RowReader(manifest.path, read_lengths(manifest, audio), max_num_elements, bad_samples, read)


def read_lengths(manifest: Manifest, config: AudioReadingConfig) -> NDArray[np.int64]:
    """(rows,) lengths in samples at the model's rate.

    :raises RecipeError: recordings have other rates and are not to be resampled.
    """
    sizes, rates = manifest.integers("size"), manifest.integers("rate")
    rates = np.where(rates > 0, rates, config.sample_rate)
    other = rates[rates != config.sample_rate]
    if len(other) and not config.resample:
        raise RecipeError(
            f"{manifest.path} has {len(other):,} recordings of {', '.join(map(str, np.unique(other)))} samples per second, but "
            f"the model takes {config.sample_rate}. Set `task.config.audio.resample: true`, or convert them."
        )

    return sizes * config.sample_rate // rates


def describe(manifest: Manifest, row: int) -> Recording:
    """What a row says of its recording."""
    start, rate = int(manifest.integers("start")[row]), int(manifest.integers("rate")[row])
    mean, variance = manifest.text("mean", row), manifest.text("variance", row)

    return Recording(
        manifest.location(row),
        int(manifest.integers("size")[row]),
        max(start, 0),
        is_segment=start >= 0,
        rate=rate if rate > 0 else None,
        statistics=None if mean is None or variance is None else (float(mean), float(variance)),
    )


def _batch_in_order(lengths: NDArray[np.int64], max_num_elements: int) -> list[RowBatch]:
    """Batches of consecutive rows, as large as fits when padded; a row that is too long for that comes alone."""
    batches, start, longest = [], 0, 0
    for row, length in enumerate(lengths.tolist()):
        longest = max(longest, length)
        if row > start and longest * (row + 1 - start) > max_num_elements:
            batches.append((start, row))
            start, longest = row, length
    batches.append((start, len(lengths)))

    return [RowBatch(np.arange(*bounds), np.zeros(bounds[1] - bounds[0], dtype=np.int64)) for bounds in batches]
