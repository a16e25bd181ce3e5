"""Recordings: what all tasks on them share, pre-training, and fine-tuning with labels of any kind."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import ClassVar

import numpy as np
from fairseq2.datasets import DataReader
from fairseq2.gang import Gangs
from fairseq2.recipe.error import RecipeError
from typing_extensions import override

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.log import log
from d2v_plugin.data.audio import Waveform, read_recording
from d2v_plugin.data.bad_samples import BadSamples, SampleError
from d2v_plugin.data.batches import ReadBatch, Targets, batch_by_length, fill_batch, make_batch, pad, read_samples
from d2v_plugin.data.buffers import Buffers
from d2v_plugin.data.dataset import AudioManifest
from d2v_plugin.data.labels import LabelKind, RowLabels
from d2v_plugin.data.manifest import Manifest
from d2v_plugin.data.mixture import arrange
from d2v_plugin.data.order import LengthOrder, Order, RowBatch, Rows, share_batch
from d2v_plugin.data.random import Purpose, draw_uniform
from d2v_plugin.data.reader import LabelledReader, TrainReader
from d2v_plugin.data.recordings import read_lengths, recording_of
from d2v_plugin.data.row_reader import RowReader
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.models.spectrograms import check_reading
from d2v_plugin.tasks.audio_settings import AudioConfigT, AudioPretrainingConfig, LabelledAudioConfig
from d2v_plugin.tasks.base import Task


class AudioTask(Task[AudioConfigT, AudioManifest]):
    """Reads an ``audio_manifest``; in training batches hold recordings of similar length."""

    modality = Modality.AUDIO
    family = AudioManifest

    longest_first: ClassVar[bool]
    """Whether a labelled split is read longest first, which pads least; otherwise in the order of the manifest."""

    shortest: int = 1
    longest: int | None = None
    """Samples that the model needs for one frame, and for which it has positions (None = any); shorter and longer recordings are
    bad samples."""

    @override
    def check_model(self, model: EncoderModel, splits: Iterable[str] | None = None) -> None:
        super().check_model(model, splits)
        frontend, reading = model.config.frontends[Modality.AUDIO], self.config.audio
        self.shortest = model.shortest_input(Modality.AUDIO)
        self.longest = getattr(frontend, "longest_input", None)
        check_reading(model.config, sample_rate=reading.sample_rate, normalize=reading.normalize)
        expected = getattr(frontend, "num_channels", 1)
        if reading.channels != expected:
            raise RecipeError(
                f"`task.config.audio.channels` is {reading.channels}, but the model's `audio.num_channels` is {expected}."
            )
        if getattr(self.config, "pad", False) and getattr(frontend, "pad_frames", None) is None:
            raise RecipeError("`task.config.pad` is true: set the model's `spectrogram.pad_frames`, to which it then pads.")
        most = self.config.max_sample_size
        if most is not None and most < self.shortest:
            raise RecipeError(
                f"`task.config.max_sample_size` is {most:,}, but the model needs {self.shortest:,} samples for one frame."
            )

    @abstractmethod
    def read_targets(self, split: str) -> Targets:
        """
        :raises RecipeError: labels are missing or wrong; names all of them.
        """

    @override
    def create_labelled_reader(self, gangs: Gangs, split: str) -> DataReader[Batch]:
        manifest, targets = self.dataset.split(split), self.read_targets(split)
        lengths = read_lengths(manifest, self.config.audio)
        rows = np.argsort(-lengths, kind="stable") if self.longest_first else np.arange(len(lengths))
        batches = batch_by_length(rows, lengths[rows], self.config.max_num_elements)

        return LabelledReader(batches, gangs, *self._open_padded(manifest, targets), to_fetch=manifest.to_fetch)

    @override
    def open_rows(self, split: str) -> RowReader:
        config, manifest = self.config, self.dataset.split(split)
        lengths = read_lengths(manifest, config.audio)
        return RowReader(lengths, config.max_num_elements, *self._open_padded(manifest), to_fetch=manifest.to_fetch)

    @override
    def locate(self, split: str, row: int) -> str:
        return str(self.dataset.split(split).location(row))

    def _open_padded(
        self, manifest: Manifest, targets: Targets | None = None, read_row: Callable[[int, int], Waveform] | None = None
    ) -> tuple[ReadBatch, BadSamples]:
        """Open recordings for batches that are padded to their longest.

        :param read_row: reads (row, epoch); None = the whole recording.
        """
        bad_samples = self._count_bad(manifest)

        def read_checked(row: int, epoch: int) -> Waveform:
            if read_row is None:
                waveform = read_recording(recording_of(manifest, row), self.config.audio)
            else:
                waveform = read_row(row, epoch)
            self._check_length(len(waveform))
            return waveform

        def read(batch: RowBatch) -> Batch | None:
            waveforms, found = read_samples(batch, bad_samples, read_checked)
            return make_batch(Modality.AUDIO, pad(waveforms, np.float32), found, targets) if found else None

        return read, bad_samples

    def _open_crops(
        self, manifest: Manifest, lengths: Rows, most: int | None, seed: int, targets: Targets | None = None
    ) -> tuple[ReadBatch, BadSamples]:
        """Open recordings for padded batches, cropped at random to ``most`` samples; None = whole.

        :param lengths: of all rows of the manifest, as they are read.
        """

        def read_row(row: int, epoch: int) -> Waveform:
            recording, spare = recording_of(manifest, row), 0 if most is None else int(lengths[row]) - most
            if spare <= 0:
                return read_recording(recording, self.config.audio)
            return read_recording(recording, self.config.audio, draw_offset(seed, epoch, row, spare), most)

        return self._open_padded(manifest, targets, read_row)

    def _check_length(self, num_samples: int) -> None:
        """
        :raises SampleError: the model makes nothing of so short, or so long, a recording.
        """
        if self.longest is not None and num_samples > self.longest:
            raise SampleError(
                f"The recording is too long: {num_samples:,} samples; the model has positions for {self.longest:,}."
            )
        if num_samples < self.shortest:
            raise SampleError(
                f"The recording is too short: {num_samples:,} samples, but the model needs {self.shortest:,} for one frame."
            )

    def _count_bad(self, manifest: Manifest) -> BadSamples:
        return BadSamples(manifest.path, len(manifest), manifest.name_of, self.config.bad_samples, self.report, manifest.file_of)

    def _create_train_reader(
        self, rows: Rows, lengths: Rows, read: ReadBatch, bad_samples: BadSamples, gangs: Gangs, seed: int
    ) -> TrainReader:
        """:param lengths: of all rows of the manifest, as they are read."""
        config = self.config
        share = share_batch(config.batches_per_update, 1, rank=gangs.dp.rank, world_size=gangs.dp.size, name="batches_per_update")

        def by_length(part: Rows, part_seed: int) -> Order:
            return LengthOrder(part, lengths[part], config.max_num_elements, part_seed)

        manifest = self.dataset.split(config.split)
        order, mixture = arrange(manifest, rows, seed, by_length)
        data_hash, to_fetch = self.hash_data(), manifest.to_fetch
        return TrainReader(order, share, gangs, read, bad_samples, data_hash=data_hash, mixture=mixture, to_fetch=to_fetch)

    def hash_data(self) -> str:
        """The hash of what training reads, by which a resumed run knows it again."""
        return self.dataset.split(self.config.split).hash_rows()


class AudioPretrainingTask(AudioTask[AudioPretrainingConfig]):
    """Reads an ``audio_manifest``, its labels for probes alone.

    As in the original, batches hold recordings of similar length and are cropped, at random, to their shortest: nothing is
    padded, unless ``pad`` asks for what EAT does.
    """

    longest_first = False

    @property
    @override
    def label_kind(self) -> LabelKind:
        return "no labels"

    @override
    def read_targets(self, split: str) -> Targets:
        return RowLabels(self.dataset.read_labels(split))

    @override
    def create_train_reader(self, gangs: Gangs, seed: int) -> DataReader[Batch]:
        config, manifest = self.config, self.dataset.split(self.config.split)
        whole = read_lengths(manifest, config.audio)
        rows = np.flatnonzero(whole >= config.min_sample_size)
        if not len(rows):
            raise RecipeError(
                f"{manifest.path} has no recording of at least `min_sample_size` ({config.min_sample_size:,}) samples; the "
                f"longest has {whole.max():,}."
            )
        if left_out := len(whole) - len(rows):
            message = "Left out {:,} of {:,} recordings, which are shorter than `min_sample_size` ({:,})."
            log.info(message, left_out, len(whole), config.min_sample_size)
        if config.pad:
            # Whatever their length, the model makes as much of each.
            lengths = np.full_like(whole, config.max_sample_size)
            opened = self._open_crops(manifest, whole, config.max_sample_size, seed)
            return self._create_train_reader(rows, lengths, *opened, gangs, seed)
        lengths = np.minimum(whole, config.max_sample_size)
        bad_samples, buffers = self._count_bad(manifest), Buffers()
        shape = () if config.audio.channels == 1 else (config.audio.channels,)

        def write_crop(row: int, epoch: int, place: Waveform) -> None:
            self._check_length(len(place) if whole[row] > self.config.max_sample_size else int(whole[row]))
            offset = draw_offset(seed, epoch, row, int(whole[row]) - len(place))
            read_recording(recording_of(manifest, row), config.audio, offset, len(place), place)

        def read(batch: RowBatch) -> Batch | None:
            # One that is too short is left out, and the others are not cropped to it.
            shortest = lengths[batch.rows].min(where=lengths[batch.rows] >= self.shortest, initial=config.max_sample_size)
            places = buffers.take(len(batch.rows), int(shortest), *shape)
            return fill_batch(Modality.AUDIO, places, batch, bad_samples, write_crop)

        return self._create_train_reader(rows, lengths, read, bad_samples, gangs, seed)


class LabelledAudioTask(AudioTask[LabelledAudioConfig]):
    """Reads an ``audio_manifest`` with labels: whole recordings, padded to the longest of their batch."""

    longest_first = True

    crops: ClassVar[bool]
    """Whether recordings longer than ``max_sample_size`` are cropped, at a new random place in every epoch, or left out."""

    @override
    def create_train_reader(self, gangs: Gangs, seed: int) -> DataReader[Batch]:
        config, manifest = self.config, self.dataset.split(self.config.split)
        targets = self.read_targets(config.split)
        whole = read_lengths(manifest, config.audio)
        rows = self._choose_rows(manifest, whole)
        lengths = whole if config.max_sample_size is None else np.minimum(whole, config.max_sample_size)

        def read_row(row: int, epoch: int) -> Waveform:
            recording, length = recording_of(manifest, row), int(lengths[row])
            spare = int(whole[row]) - length
            if spare <= 0:
                return read_recording(recording, config.audio)
            return read_recording(recording, config.audio, draw_offset(seed, epoch, row, spare), length)

        return self._create_train_reader(rows, lengths, *self._open_padded(manifest, targets, read_row), gangs, seed)

    def _choose_rows(self, manifest: Manifest, lengths: Rows) -> Rows:
        most = self.config.max_sample_size
        if self.crops or most is None:
            return np.arange(len(lengths))
        rows = np.flatnonzero(lengths <= most)
        if not len(rows):
            raise RecipeError(
                f"All recordings of {manifest.path} are longer than `task.config.max_sample_size` ({most:,}); the shortest has "
                f"{lengths.min():,} samples."
            )
        if left_out := len(lengths) - len(rows):
            log.info("Left out {:,} recordings, which are longer than `max_sample_size` ({:,}).", left_out, most)

        return rows


def draw_offset(seed: int, epoch: int, row: int, spare: int) -> int:
    """Draw where a crop begins of a recording that has ``spare`` more samples."""
    (place,) = draw_uniform(seed, epoch, Purpose.CROP, row, 1)
    return int(place * (spare + 1))
