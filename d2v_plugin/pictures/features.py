"""Pictures of features: principal components as colors, similarities of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from d2v_plugin.core.batch import Batch, Grid, Modality
from d2v_plugin.models.statistics import token_similarities
from d2v_plugin.pictures.canvas import WIDTH, count_on, create_figure
from d2v_plugin.pictures.panels import find_axes, show_image, show_sound

COMPONENTS = "The first three principal components of each layer's features as red, green and blue"
MAX_COLUMNS = 6
MAX_BESIDE = 4
GAP = 0.125
"""Between maps of layers, in widths of a map."""


def draw_features(
    batch: Batch,
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    padding_mask: Tensor | None = None,
    grid: Grid | None = None,
) -> Figure:
    """Draw the first three principal components of each layer's features as red, green and blue.

    Tokens with the same color have similar features; colors of different layers cannot be compared.

    :param student: the output of each block, (N, S, D).
    :param teacher: likewise the teacher's; may be empty.
    :param padding_mask: (N, S), True = padding, which stays white.
    :param grid: (H, W) of the patches of images.
    """
    models = {"Student": student, "Teacher": teacher}
    colors = {
        who: torch.stack([color_by_components(x, padding_mask) for x in layers], dim=1)
        for who, layers in models.items()
        if layers
    }

    # Patches of spectrograms come in the order of time.
    return _draw_strips(batch, colors) if grid is None or batch.modality is Modality.AUDIO else _draw_maps(batch, colors, grid)


def color_by_components(x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
    """(N, S, D) features -> (N, S, 3) uint8; the components are those of all tokens together, padding is white."""
    valid = torch.ones(x.shape[:2], dtype=torch.bool) if padding_mask is None else ~padding_mask.cpu()
    tokens = x.detach().to("cpu", torch.float32)[valid]
    tokens = tokens - tokens.mean(dim=0)
    # The eigenvectors of the covariance; at most D x D, whatever the number of tokens.
    vectors = torch.linalg.eigh(tokens.T @ tokens).eigenvectors[:, -3:].flip(1)
    # A sign that does not depend on the solver.
    vectors = vectors * torch.where(vectors.sum(dim=0) < 0, -1.0, 1.0)
    components = tokens @ vectors
    low, high = components.quantile(0.02, dim=0), components.quantile(0.98, dim=0)
    shades = ((components - low) / (high - low).clamp_min(1e-9)).clamp(0.0, 1.0) * 255
    colors = torch.full((*x.shape[:2], 3), 255, dtype=torch.uint8)
    colors[valid] = F.pad(shades, (0, 3 - shades.size(1))).round().to(torch.uint8)

    return colors


def draw_similarities(sample: int, layers: Sequence[Tensor]) -> Figure:
    """Draw how similar the tokens of a sample are to each other, layer by layer.

    What they have in common is subtracted first, since it hides the rest. The mean similarity before that stands above each
    panel; 1 there means that a model collapses.

    :param sample: what it is called.
    :param layers: (S, D) each, without padding.
    """
    maps = [token_similarities(x - x.mean(dim=0)).cpu() for x in layers]
    others = ~torch.eye(maps[0].size(0), dtype=torch.bool)
    limit = max(0.01, *(float(x[others].abs().quantile(0.98)) if x.size(0) > 1 else 0.0 for x in maps))
    columns = min(MAX_COLUMNS, len(maps))
    rows = -(-len(maps) // columns)
    side = min(3.5, (WIDTH - 1.2) / columns)
    title = f"Similarity of the tokens of sample {sample} after their mean is subtracted (in brackets: mean before)"
    figure = create_figure((side + 0.4) * rows + 0.8, title)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for layer, axes in enumerate(grid.flat):
        if layer >= len(maps):
            axes.set_axis_off()
            continue
        shown = axes.imshow(maps[layer].numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        axes.set_title(f"Layer {layer} ({float(token_similarities(layers[layer]).mean()):.2f})", fontsize=12)
        count_on(axes, x=True, y=True)
    for axes in grid[:, 0]:
        axes.set_ylabel("Token")
    for axes in grid[-1]:
        axes.set_xlabel("Token")
    figure.colorbar(shown, ax=grid, label="Cosine similarity", extend="both", fraction=0.03, shrink=0.8)

    return figure


def _draw_maps(batch: Batch, colors: Mapping[str, Tensor], grid: Grid) -> Figure:
    """The input of each sample and a map for each layer: the teacher's beside the student's if that fits, else below."""
    num_samples, num_layers = next(iter(colors.values())).shape[:2]
    rows, columns = (1, len(colors)) if num_layers <= MAX_BESIDE else (len(colors), 1)
    side = min(1.8, (WIDTH - 0.8 - 0.4 * columns) / (1 + columns * num_layers * (1 + GAP)))
    figure = create_figure((side + 0.1) * num_samples * rows + 1.2, COMPONENTS)
    ratios = [1.0, *[num_layers * (1 + GAP)] * columns]
    cells = figure.subplots(num_samples * rows, 1 + columns, squeeze=False, sharex="col", width_ratios=ratios)
    for sample in range(num_samples):
        block = cells[sample * rows : (sample + 1) * rows]
        show_image(block[0, 0], batch.inputs[sample])
        block[0, 0].set_ylabel(f"Sample {int(batch.ids[sample])}\nPixels")
        for axes in block[1:, 0]:
            axes.set_axis_off()
        for axes, (who, x) in zip(block[:, 1:].flat, colors.items(), strict=True):
            _show_maps(axes, x[sample], grid)
            axes.set_ylabel(f"{who}\nPatches")
    cells[0, 0].set_title("Input", fontsize=12)
    for axes in cells[-1, 1:]:
        axes.set_xlabel("Layer")

    return figure


def _show_maps(axes: Axes, colors: Tensor, grid: Grid) -> None:
    """(L, S, 3) -> L maps beside each other, a gap between them."""
    height, width = grid
    cells: NDArray[Any] = colors.unflatten(1, grid).numpy()
    gap = max(1, round(GAP * width))
    canvas = np.full((height, len(cells) * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for layer, cell in enumerate(cells):
        canvas[:, layer * (width + gap) : layer * (width + gap) + width] = cell
    axes.imshow(canvas, extent=(0, canvas.shape[1], height, 0), interpolation="nearest")
    axes.set_xticks([layer * (width + gap) + width / 2 for layer in range(len(cells))], [str(i) for i in range(len(cells))])
    axes.set_yticks([0, height])
    axes.spines[:].set_visible(False)


def _draw_strips(batch: Batch, colors: Mapping[str, Tensor]) -> Figure:
    """A column for each sample: sound as it is, then for each model a strip for each layer, the first below."""
    is_sound, labels = batch.modality is Modality.AUDIO, find_axes(batch)
    num_samples, num_layers = next(iter(colors.values())).shape[:2]
    columns = min(4, num_samples)
    blocks, rows = -(-num_samples // columns), len(colors) + is_sound
    figure = create_figure(blocks * (len(colors) * (0.7 + 0.12 * num_layers) + 1.4 * is_sound) + 1.2, COMPONENTS)
    heights = [*([1.2] * is_sound), *([0.5 + 0.12 * num_layers] * len(colors))] * blocks
    grid = figure.subplots(blocks * rows, columns, squeeze=False, sharex=True, sharey="row", height_ratios=heights)
    end = batch.inputs.size(1) / labels.per_unit if is_sound else next(iter(colors.values())).size(2)
    for place in range(blocks * columns):
        block, column = divmod(place, columns)
        cells = list(grid[block * rows : (block + 1) * rows, column])
        if place >= num_samples:
            for axes in cells:
                axes.set_axis_off()
            continue
        cells[0].set_title(f"Sample {int(batch.ids[place])}", fontsize=12)
        cells[-1].set_xlabel(labels.time if is_sound else "Token")
        if is_sound:
            axes = cells.pop(0)
            show_sound(axes, batch, place)
            axes.set_ylabel(labels.height if column == 0 else "")
        for axes, (who, shades) in zip(cells, colors.items(), strict=True):
            extent = (0, end, -0.5, num_layers - 0.5)
            axes.imshow(shades[place].numpy(), extent=extent, origin="lower", aspect="auto", interpolation="nearest")
            axes.set_ylabel(f"{who}\nLayer" if column == 0 else "")
            count_on(axes, y=True)

    return figure
