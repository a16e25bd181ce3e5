"""Settings of the tasks on recordings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from d2v_plugin.core.ranges import NonNegativeInt, PositiveInt
from d2v_plugin.core.validation import Checked
from d2v_plugin.data.audio import AudioReadingConfig
from d2v_plugin.data.bad_samples import BadSampleConfig


@dataclass(kw_only=True)
class AudioPretrainingConfig(Checked):
    """Settings of ``audio_pretraining``."""

    split: str = "train"
    """The manifest to train on."""

    batches_per_update: PositiveInt = 8
    """Length batches per update, over all ranks; each is one forward pass."""

    max_num_elements: PositiveInt = 1_000_000
    """Most samples of sound in one forward pass."""

    min_sample_size: NonNegativeInt = 32_000
    """Shorter recordings are left out."""

    max_sample_size: PositiveInt = 320_000
    """Longer recordings are cropped to this, at a new random place in every epoch."""

    pad: bool = False
    """Batches hold recordings of any length, padded, as EAT does; the model's ``spectrogram.pad_frames`` must be set. Otherwise
    they are of similar length and cropped to their shortest."""

    audio: AudioReadingConfig = field(default_factory=AudioReadingConfig)
    """How recordings become waveforms."""

    bad_samples: BadSampleConfig = field(default_factory=BadSampleConfig)
    """How many unreadable recordings a run puts up with."""


@dataclass(kw_only=True)
class LabelledAudioConfig(Checked):
    """Settings of all tasks of fine-tuning on recordings."""

    split: str = "train"
    """The manifest to train on."""

    batches_per_update: PositiveInt = 8
    """Length batches per update, over all ranks; each is one forward pass."""

    max_num_elements: PositiveInt = 3_200_000
    """Most samples of sound in one forward pass, padding included."""

    max_sample_size: PositiveInt | None = None
    """Longest recording to train on, in samples; None = any."""

    audio: AudioReadingConfig = field(default_factory=AudioReadingConfig)
    """How recordings become waveforms."""

    bad_samples: BadSampleConfig = field(default_factory=BadSampleConfig)
    """How many unreadable recordings a run puts up with."""


AudioConfigT = TypeVar("AudioConfigT", AudioPretrainingConfig, LabelledAudioConfig)
