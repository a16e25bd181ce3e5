"""Settings of the tasks on recordings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from d2v_plugin.core.validation import report
from d2v_plugin.data.audio import AudioReadingConfig
from d2v_plugin.data.bad_samples import BadSampleConfig
from d2v_plugin.tasks.base import check_counts


@dataclass(kw_only=True)
class AudioPretrainingConfig(Validatable):
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

    pad: bool = False
    """Batches hold recordings of any length, padded, as EAT does; the model's ``spectrogram.pad_frames`` must be set. Otherwise
    they are of similar length and cropped to their shortest."""

    audio: AudioReadingConfig = field(default_factory=AudioReadingConfig)
    """How recordings become waveforms."""

    bad_samples: BadSampleConfig = field(default_factory=BadSampleConfig)
    """How many unreadable recordings a run puts up with."""

    @override
    def validate(self) -> ValidationResult:
        return _check_settings(self)


@dataclass(kw_only=True)
class LabelledAudioConfig(Validatable):
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

    @override
    def validate(self) -> ValidationResult:
        return _check_settings(self)


AudioConfigT = TypeVar("AudioConfigT", AudioPretrainingConfig, LabelledAudioConfig)


def _check_settings(config: AudioPretrainingConfig | LabelledAudioConfig) -> ValidationResult:
    names = ("batches_per_update", "max_num_elements", "max_sample_size")
    numbers = {"sample_rate": config.audio.sample_rate, "channels": config.audio.channels}
    return report(
        *check_counts(**{name: getattr(config, name) for name in names}),
        *((value < 1, f"`audio.{name}` must be at least 1, but is {value}.") for name, value in numbers.items()),
    )
