"""Panels: an input in axes with units: pixels, seconds and kilohertz."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from torch import Tensor

from d2v_plugin.core.batch import Batch
from d2v_plugin.pictures.canvas import Extent, count_on, cover
from d2v_plugin.pictures.inputs import RANGE_DB, SAMPLE_RATE, find_length, to_rgb, to_spectrogram

LEVEL = "Level (dB)"


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


def show_sound(axes: Axes, batch: Batch, sample: int, mask: Tensor | None = None) -> AxesImage:
    """Show the spectrogram of a sample over its seconds; padding stays white.

    :param mask: (S) over the frames of the batch, or (H, W) over the patches of their spectrograms.
    """
    total, length = batch.inputs.size(1), find_length(batch, sample)
    seconds, end = total / SAMPLE_RATE, length / SAMPLE_RATE
    levels = to_spectrogram(batch.inputs[sample, :length])
    shown = axes.imshow(
        levels, extent=(0, end, 0, SAMPLE_RATE / 2000), origin="lower", aspect="auto", vmin=-RANGE_DB, vmax=0, cmap="Greys"
    )
    if mask is not None:
        kept = max(1, round(len(mask) * length / total))
        # Patches of spectrograms: (T', B) -> (B, T'), the lowest band last.
        cells = mask[None, :kept] if mask.dim() == 1 else mask[:kept].T.flip(0)
        cover(axes, cells.cpu().numpy(), (0, end, 0, SAMPLE_RATE / 2000))
    axes.set_xlim(0, seconds)
    count_on(axes, y=True)

    return shown
