"""Panels: an input in axes with units: pixels, seconds and kilohertz, samples and channels."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from torch import Tensor

from d2v_plugin.core.batch import Batch
from d2v_plugin.pictures.canvas import Extent, count_on, cover
from d2v_plugin.pictures.inputs import RANGE_DB, SAMPLE_RATE, find_length, to_rgb, to_spectrogram


@dataclass(frozen=True)
class SoundAxes:
    """What stands beside :func:`show_sound`."""

    per_unit: int
    """Samples per unit of time."""

    time: str
    height: str
    level: str


_SPECTROGRAM = SoundAxes(SAMPLE_RATE, "Time (s)", "kHz", "Level (dB)")
_CHANNELS = SoundAxes(1, "Sample", "Channel", "Deviations")
_DEVIATIONS = 3.0


def show_image(axes: Axes, x: Tensor, mask: Tensor | None = None) -> None:
    """Show an image over its pixels.

    :param x: (C, H, W)
    :param mask: (H, W) over its patches.
    """
    extent: Extent = (0, x.size(2), x.size(1), 0)
    axes.imshow(to_rgb(x), extent=extent, interpolation="nearest")
    if mask is not None:
        cover(axes, mask.cpu().numpy(), extent)
    axes.set_xticks([0, x.size(2)])
    axes.set_yticks([0, x.size(1)])


def find_axes(batch: Batch) -> SoundAxes:
    """The axes of :func:`show_sound`: of sound, or of several channels."""
    return _SPECTROGRAM if batch.inputs.dim() == 2 else _CHANNELS


def show_sound(axes: Axes, batch: Batch, sample: int, mask: Tensor | None = None) -> AxesImage:
    """Show the spectrogram of a sample over its seconds, of several channels each of them over its samples; padding stays white.

    :param mask: (S) over the frames of the batch, or (H, W) over the patches of their spectrograms.
    """
    total, length = batch.inputs.size(1), find_length(batch, sample)
    signal = batch.inputs[sample, :length]
    if signal.dim() == 1:
        levels, darkest, lightest = to_spectrogram(signal), -RANGE_DB, 0.0
        height = SAMPLE_RATE / 2000
    else:
        levels, darkest, lightest = signal.detach().float().cpu().T.numpy(), -_DEVIATIONS, _DEVIATIONS
        height = float(len(levels))
    per_unit = find_axes(batch).per_unit
    end = length / per_unit
    shown = axes.imshow(
        levels, extent=(0, end, 0, height), origin="lower", aspect="auto", vmin=darkest, vmax=lightest, cmap="Greys"
    )
    if mask is not None:
        kept = max(1, round(len(mask) * length / total))
        # Patches of spectrograms: (T', B) -> (B, T'), the lowest band last.
        cells = mask[None, :kept] if mask.dim() == 1 else mask[:kept].T.flip(0)
        cover(axes, cells.cpu().numpy(), (0, end, 0, height))
    axes.set_xlim(0, total / per_unit)
    count_on(axes, y=True)

    return shown
