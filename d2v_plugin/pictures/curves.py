"""Pictures of numbers by layer: curves over updates and over layers, learned scales."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from d2v_plugin.pictures.canvas import count_on, create_figure

NAMES = {
    "student_deviation": ("Deviation of the student's features", "Mean standard deviation of channels"),
    "teacher_deviation": ("Deviation of the teacher's features", "Mean standard deviation of channels"),
    "student_effective_rank": ("Effective rank of the student's features", "Effective rank (dimensions)"),
    "teacher_effective_rank": ("Effective rank of the teacher's features", "Effective rank (dimensions)"),
    "token_similarity": ("How alike the tokens of a sample are", "Mean cosine similarity"),
}
"""Title and axis of what :mod:`d2v_plugin.pictures.figures` measures."""

MAX_MOMENTS = 5


def draw_history(history: Sequence[Sequence[float]], steps: Sequence[int], name: str) -> Figure:
    """Draw a number per layer twice: over updates, a curve for each layer; over layers, a curve for some updates.

    :param history: one row per moment, one number per layer.
    """
    title, label = NAMES.get(name, (name.replace("_", " ").capitalize(),) * 2)
    values = np.array(history)
    figure = create_figure(4.5, title)
    over_updates, over_layers = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])

    _draw_curves(over_updates, np.array(steps), values.T, range(values.shape[1]), "Layer", "viridis")
    over_updates.set(xlabel="Update", ylabel=label)
    # Always the first and the last.
    moments = sorted({round(i) for i in np.linspace(0, len(steps) - 1, min(MAX_MOMENTS, len(steps)))})
    colors = colormaps["cividis"](np.linspace(0.0, 0.85, len(moments)))
    for moment, color in zip(moments, colors, strict=True):
        over_layers.plot(values[moment], "o-", color=color, markersize=4, label=f"Update {steps[moment]:,}")
    over_layers.set(xlabel="Layer")
    over_layers.legend(fontsize=10)
    for axes in (over_updates, over_layers):
        count_on(axes, x=True)
        axes.grid(alpha=0.3)
        axes.set_ylim(min(0.0, values.min()), 1.0 if name == "token_similarity" else 1.1 * max(values.max(), 1e-3))

    return figure


def draw_scales(scales: Tensor) -> Figure:
    """Draw the learned ALiBi scales, one row per layer (one if shared), one column per head.

    :param scales: (1 or L, 1, H or 1, 1, 1)
    """
    x = scales.detach().float().cpu().clamp_min(0.0).flatten(1)
    figure = create_figure(min(9.0, 2.2 + 0.4 * x.size(0)), "Learned scale of the ALiBi bias")
    axes = figure.subplots()
    shown = axes.imshow(x.numpy(), vmin=0.0, aspect="auto", interpolation="nearest")
    axes.set(xlabel="Head" if x.size(1) > 1 else "All heads", ylabel="Layer" if x.size(0) > 1 else "All layers")
    count_on(axes, x=True, y=True)
    figure.colorbar(shown, ax=axes, label="Scale")

    return figure


def _draw_curves(
    axes: Axes, x: np.ndarray[tuple[int], np.dtype[np.int64]], rows: Sequence[Sequence[float]], of: range, label: str, name: str
) -> None:
    """Draw a curve for each row, with a bar that says which color is which."""
    norm, colors = Normalize(of[0], max(of[-1], of[0] + 1)), colormaps[name]
    for number, row in zip(of, rows, strict=True):
        axes.plot(x, row, "o-", markersize=3, color=colors(norm(number)))
    bar = axes.figure.colorbar(ScalarMappable(norm, colors), ax=axes, label=label)
    bar.ax.set_yticks(sorted({of[0], of[-1]} | set(of[:: max(1, len(of) // 6)])))
