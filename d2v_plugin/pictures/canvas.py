"""The canvas: figures of matplotlib without its global state, what covers their axes, and how they become pictures.

Nothing here touches ``pyplot``, backends or settings, so that figures may be drawn beside training and in any thread.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

WIDTH = 12.0
"""Inches of a figure; at :data:`DPI` 1,200 pixels, in which ten points of type are 14 pixels high."""

DPI = 100

TINT = (1.0, 0.45, 0.0, 0.55)
"""What lies over masked places: dark and bright inputs are seen through it."""

Extent = tuple[float, float, float, float]
"""Left, right, bottom and top of an image in the units of its axes."""


def create_figure(height: float, title: str) -> Figure:
    """Create an empty figure of :data:`WIDTH` x ``height`` inches."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    figure.suptitle(title, fontsize=14)

    return figure


def render(figure: Figure) -> Image.Image:
    """Draw a figure."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]

    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())  # type: ignore[no-untyped-call]


def cover(axes: Axes, mask: NDArray[np.bool_], extent: Extent) -> None:
    """Tint what is masked.

    :param mask: (H, W), the first row above; True = masked.
    """
    tint = np.zeros((*mask.shape, 4))
    tint[mask] = TINT
    axes.imshow(tint, extent=extent, aspect=axes.get_aspect(), interpolation="nearest")


def count_on(axes: Axes, *, x: bool = False, y: bool = False) -> None:
    """Put ticks at whole numbers alone: pixels, tokens, layers, updates."""
    for axis in (*([axes.xaxis] * x), *([axes.yaxis] * y)):
        axis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
