"""Log-mel spectrograms, Kaldi's filter banks, on tensors of any device: the values of ``torchaudio.compliance.kaldi.fbank`` with
``window_type="hanning"``, ``dither=0`` and ``use_energy=False``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Final, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from d2v_plugin.core.ranges import Range
from d2v_plugin.core.validation import Checked

LengthT = TypeVar("LengthT", int, Tensor)

_PREEMPHASIS: Final = 0.97
_LEAST: Final = torch.finfo(torch.float32).eps


@dataclass(kw_only=True)
class LogMelConfig(Checked):
    """Settings of log-mel spectrograms; the defaults are those of Audio-MAE and EAT."""

    sample_rate: Annotated[int, Range(">= 1, <= 1,048,576")] = 16_000
    """Samples per second of the waveforms."""

    num_mels: Annotated[int, Range(">= 1, <= 4,096")] = 128
    """Bands."""

    frame_length: Annotated[float, Range(">= 0.1, <= 1e4")] = 25.0
    """Length of a frame, in milliseconds."""

    frame_shift: Annotated[float, Range(">= 0.1, <= 1e4")] = 10.0
    """From the start of one frame to that of the next, in milliseconds."""

    low_freq: Annotated[float, Range(">= -1e6, <= 1e6")] = 20.0
    """Lower edge of the lowest band, in hertz."""

    high_freq: Annotated[float, Range(">= -1e6, <= 1e6")] = 0.0
    """Upper edge of the highest band, in hertz; 0 or less counts from half the sample rate."""

    @property
    def window(self) -> int:
        """Samples of a frame."""
        return int(self.sample_rate * self.frame_length / 1000)

    @property
    def shift(self) -> int:
        """Samples from one frame to the next."""
        return int(self.sample_rate * self.frame_shift / 1000)

    @property
    def fft_size(self) -> int:
        """Samples of a frame after padding to a power of two."""
        return 1 << (self.window - 1).bit_length()

    @property
    def edges(self) -> tuple[float, float]:
        """The lowest and the highest frequency, in hertz."""
        nyquist = self.sample_rate / 2
        return self.low_freq, self.high_freq if self.high_freq > 0 else nyquist + self.high_freq

    def count_frames(self, num_samples: LengthT) -> LengthT:
        """Whole frames in so many samples; 0 or less where there is none."""
        return (num_samples - self.window) // self.shift + 1


def check_log_mel(config: LogMelConfig, place: str) -> Iterator[tuple[bool, str]]:
    """Check settings that must fit each other.

    :param place: where they stand, ending with a dot.
    """
    yield (
        config.shift < 1 or config.window < 2,
        f"`{place}frame_length` and `{place}frame_shift` ({config.frame_length} and {config.frame_shift} ms) must have samples "
        f"at `{place}sample_rate` ({config.sample_rate:,}).",
    )
    low, high = config.edges
    in_range = 0.0 <= low < high <= config.sample_rate / 2
    yield (
        not in_range,
        f"`{place}low_freq` and `{place}high_freq` must lie one above the other between 0 and half of `{place}sample_rate` "
        f"({config.sample_rate / 2:,g} Hz), but are {low:g} and {high:g} Hz.",
    )
    if in_range and config.window >= 2:
        # Low bands may lie between two frequencies of the transform: a few are usual (2 of 128), more would hear nothing.
        empty = int((_build_filters(config.num_mels, config.fft_size, config.sample_rate, low, high).amax(dim=1) == 0).sum())
        yield (
            empty > config.num_mels // 16,
            f"`{place}num_mels` is {config.num_mels}, of which {empty} would lie between two frequencies of a frame of "
            f"{config.fft_size} samples and hear nothing: set fewer, or a longer `{place}frame_length`.",
        )


def log_mel(waveforms: Tensor, config: LogMelConfig) -> Tensor:
    """Compute spectrograms: (N, T) -> (N, F, B) float32.

    :raises ValueError: the waveforms have no whole frame.
    """
    if config.count_frames(waveforms.size(-1)) < 1:
        raise ValueError(f"`inputs` must have at least {config.window} samples for one frame, but has {waveforms.size(-1)}.")
    with torch.autocast(waveforms.device.type, enabled=False):
        # (N, T) -> (N, F, W)
        frames = waveforms.float().unfold(-1, config.window, config.shift)
        frames = frames - frames.mean(dim=-1, keepdim=True)
        before = F.pad(frames, (1, 0), mode="replicate")[..., :-1]
        frames = (frames - _PREEMPHASIS * before) * _build_window(config.window).to(frames.device)
        power = torch.fft.rfft(frames, n=config.fft_size).abs().square()
        filters = _build_filters(config.num_mels, config.fft_size, config.sample_rate, *config.edges).to(frames.device)
        values: Tensor = (power @ filters.T).clamp(min=_LEAST).log()

    return values


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _build_window(size: int) -> Tensor:
    """Weights of the samples of a frame: (W). Made once, also because ONNX has no operator that makes them."""
    return torch.hann_window(size, periodic=False, device="cpu")


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _build_filters(num_mels: int, fft_size: int, sample_rate: int, low: float, high: float) -> Tensor:
    """Triangles on the mel scale: (B, fft_size / 2 + 1). In fp32 and in this order, so that values are rounded as theirs."""
    low_mel, high_mel = (1127.0 * math.log(1.0 + frequency / 700.0) for frequency in (low, high))
    step = (high_mel - low_mel) / (num_mels + 1)
    bands = torch.arange(num_mels, device="cpu").unsqueeze(1)
    left, center, right = low_mel + bands * step, low_mel + (bands + 1.0) * step, low_mel + (bands + 2.0) * step
    bins = 1127.0 * (1.0 + sample_rate / fft_size * torch.arange(fft_size // 2, device="cpu") / 700.0).log()
    filters = torch.minimum((bins - left) / (center - left), (right - bins) / (right - center)).clamp(min=0.0)

    # There is none for half the sample rate itself.
    return F.pad(filters, (0, 1))
