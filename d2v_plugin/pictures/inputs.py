"""Inputs as they are shown: images as red, green and blue; waveforms as spectrograms."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from d2v_plugin.core.batch import Batch

SAMPLE_RATE = 16_000

RANGE_DB = 70.0
"""How far below the loudest place a spectrogram is shown."""


def to_rgb(x: Tensor) -> NDArray[Any]:
    """A normalized image as it looked, up to contrast: (C, H, W) -> (H, W, 3), 0 to 1."""
    x = x.detach().float().cpu()
    x = (x - x.min()) / (x.max() - x.min()).clamp_min(1e-6)
    x = x[:1].expand(3, -1, -1) if x.size(0) < 3 else x[:3]

    return x.permute(1, 2, 0).numpy()


def to_spectrogram(x: Tensor) -> NDArray[Any]:
    """The levels of a waveform at 16 kHz in dB below the loudest: (T) -> (257, frames), low frequencies first."""
    x = x.detach().float().cpu()
    x = F.pad(x, (0, max(0, 512 - x.numel())))
    # 25 ms windows every 10 ms.
    spectrum = torch.stft(x, 512, hop_length=160, win_length=400, window=torch.hann_window(400), return_complex=True).abs()
    decibels = 20 * torch.log10(spectrum.clamp_min(1e-5))

    return (decibels - decibels.max()).numpy()


def find_length(batch: Batch, sample: int) -> int:
    """How much of a sample of sound or text is no padding: samples of the waveform, or tokens."""
    if batch.padding_mask is None:
        return batch.inputs.size(1)

    return int((~batch.padding_mask[sample]).sum())
