"""Log-mel spectrograms of recordings, as images of one channel: frames from top to bottom, bands from left to right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from fairseq2.recipe.error import RecipeError
from torch import Tensor

from d2v_plugin.core.batch import Modality
from d2v_plugin.core.ranges import Range
from d2v_plugin.data.log_mel import LengthT, LogMelConfig, check_log_mel, log_mel
from d2v_plugin.models.base import EncoderConfig
from d2v_plugin.models.ranges import Length, Size


@dataclass(kw_only=True)
class SpectrogramConfig(LogMelConfig):
    """Log-mel spectrograms (Kaldi's filter banks) cut into square patches, with fixed 2-D sine-cosine positions."""

    log_mel_mean: Annotated[float, Range(">= -1e6, <= 1e6")] = -4.268
    """Mean of the log-mel values, AudioSet's; ``report`` = that which ``fairseq2 recipe manifest`` measured."""

    log_mel_std: Annotated[float, Range("> 0, <= 1e6")] = 4.569
    """Their standard deviation; ``report`` likewise. What the model sees is (x - log_mel_mean) / (2 · log_mel_std)."""

    patch_size: Size = 16
    """Frames and bands of a patch. Frames behind the last whole patch are left out."""

    max_frames: Length = 12_288
    """Longest recording, in frames: positions are kept for so many."""

    pad_frames: Length | None = None
    """Pad or cut every recording to so many frames, and attend to the padding as if it were sound, which EAT does (1,024 for
    10 s). None = variable length, padding is left out."""

    @property
    def columns(self) -> int:
        """Patches from the lowest to the highest band."""
        return self.num_mels // self.patch_size

    @property
    def rows(self) -> int:
        """Patches of the longest recording, in time."""
        return self.max_frames // self.patch_size

    @property
    def samples_per_frame(self) -> int:
        """Samples from one row of patches to the next."""
        return self.shift * self.patch_size

    @property
    def longest_input(self) -> int | None:
        """Samples of the longest recording; None = any, the rest is cut."""
        return None if self.pad_frames is not None else (self.max_frames + self.patch_size - 1) * self.shift + self.window - 1

    def count_tokens(self, num_samples: LengthT) -> LengthT:
        """Patches that so many samples give; 0 or less where there is none."""
        if self.pad_frames is not None:
            return (self.count_frames(num_samples) > 0) * (self.pad_frames // self.patch_size * self.columns)
        return self.count_frames(num_samples) // self.patch_size * self.columns


def sees_spectrograms(config: EncoderConfig) -> bool:
    """Tell whether a model hears recordings as spectrograms."""
    return isinstance(config.frontends.get(Modality.AUDIO), SpectrogramConfig)


def check_reading(config: EncoderConfig, *, sample_rate: int, normalize: bool) -> None:
    """Check that recordings are read as a model of spectrograms wants them; others may be read in any way.

    :param normalize: whether waveforms get zero mean and unit variance.
    :raises RecipeError: they are not.
    """
    if not sees_spectrograms(config):
        return
    own = config.frontends[Modality.AUDIO].sample_rate
    if sample_rate != own:
        raise RecipeError(
            f"`task.config.audio.sample_rate` is {sample_rate:,}, but the model's `spectrogram.sample_rate` is {own:,}."
        )
    if normalize:
        raise RecipeError(
            "`task.config.audio.normalize` must be false: the model normalizes spectrograms, by `log_mel_mean` and `log_mel_std` "
            "of recordings as they are."
        )


def check_spectrograms(config: SpectrogramConfig) -> Iterator[tuple[bool, str]]:
    """Check settings of spectrograms that must fit each other."""
    place = "spectrogram."
    yield from check_log_mel(config, place)
    for name in ("num_mels", "max_frames", "pad_frames"):
        number = getattr(config, name)
        yield (
            number is not None and number % config.patch_size != 0,
            f"`{place}patch_size` must divide `{place}{name}` ({number}), but is {config.patch_size}.",
        )
    yield (
        config.pad_frames is not None and config.pad_frames > config.max_frames,
        f"`{place}pad_frames` ({config.pad_frames}) must be at most `{place}max_frames` ({config.max_frames}).",
    )


def normalized_log_mel(waveforms: Tensor, padding_mask: Tensor | None, config: SpectrogramConfig) -> Tensor:
    """Compute what is cut into patches: (N, T) -> (N, F, B), F a multiple of the patches' size.

    :param padding_mask: (N, T), True = padding, behind the waveforms.
    :raises ValueError: the waveforms are shorter than a patch, or longer than there are positions.
    """
    spectrogram, size = log_mel(waveforms, config), config.patch_size
    num_frames = spectrogram.size(1)
    if config.pad_frames is not None:
        if padding_mask is not None:
            counts = config.count_frames((~padding_mask).sum(dim=1, keepdim=True))
            padded = torch.arange(num_frames, device=waveforms.device) >= counts
            spectrogram = spectrogram.masked_fill(padded.unsqueeze(-1), 0.0)
        spectrogram = F.pad(spectrogram, (0, 0, 0, max(0, config.pad_frames - num_frames)))[:, : config.pad_frames]
    elif num_frames < size:
        raise ValueError(
            f"`inputs` must be long enough for one patch of {size} frames, but has {num_frames} ({waveforms.size(1):,} samples)."
        )
    elif num_frames // size > config.rows:
        raise ValueError(
            f"`inputs` must have at most `spectrogram.max_frames` ({config.max_frames:,}) frames, but has {num_frames:,}."
        )
    else:
        spectrogram = spectrogram[:, : num_frames // size * size]

    return (spectrogram - config.log_mel_mean) / (2 * config.log_mel_std)


def mark_padded_tokens(padding_mask: Tensor | None, num_tokens: int, config: SpectrogramConfig) -> Tensor | None:
    """The padding mask at the resolution of the patches: (N, T) -> (N, S); None = nothing is padded."""
    if padding_mask is None or config.pad_frames is not None:
        return None
    counts = config.count_tokens((~padding_mask).sum(dim=1, keepdim=True))
    return torch.arange(num_tokens, device=padding_mask.device) >= counts
