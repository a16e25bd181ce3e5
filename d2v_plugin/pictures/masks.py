"""Pictures of masks: each sample as it is, and with what is masked in its first views."""

from __future__ import annotations

from matplotlib.figure import Figure
from torch import Tensor

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import Spell
from d2v_plugin.pictures.canvas import WIDTH, create_figure
from d2v_plugin.pictures.panels import find_axes, show_image, show_sound
from d2v_plugin.pictures.words import draw_words

MAX_VIEWS = 8
MAX_STRIPS = 3
MAX_COLUMNS = 4


def draw_masks(batch: Batch, masks: Tensor, spell: Spell | None = None) -> Figure:
    """Draw what the student sees: masked places are tinted.

    :param masks: (N, M, S), of grids (N, M, H, W), True = masked.
    :param spell: for text; None = ids are shown.
    """
    masks = masks.cpu()
    match batch.modality:
        case Modality.IMAGE:
            return _draw_images(batch, masks[:, :MAX_VIEWS])
        case Modality.AUDIO:
            return _draw_sound(batch, masks[:, :MAX_STRIPS])
        case Modality.TEXT:
            return draw_words(batch, masks[:, :MAX_STRIPS], spell or (lambda ids: [str(i) for i in ids]))


def describe_masks(masks: Tensor, what: str) -> str:
    """The title: how much is masked."""
    return f"What is masked in each view (tinted): {masks.float().mean():.0%} of {masks[0, 0].numel():,} {what}"


def _draw_images(batch: Batch, masks: Tensor) -> Figure:
    num_samples, num_views = masks.shape[:2]
    side = min(2.5, (WIDTH - 0.7) / (1 + num_views))
    figure = create_figure(side * num_samples + 1.0, describe_masks(masks, "patches"))
    grid = figure.subplots(num_samples, 1 + num_views, squeeze=False)
    for sample, row in enumerate(grid):
        for view, axes in enumerate(row):
            show_image(axes, batch.inputs[sample], masks[sample, view - 1] if view > 0 else None)
            if sample == 0:
                axes.set_title("Input" if view == 0 else f"View {view}", fontsize=12)
            if view > 0 or sample < num_samples - 1:
                axes.set_xticklabels([])
            if view > 0:
                axes.set_yticklabels([])
        row[0].set_ylabel(f"Sample {int(batch.ids[sample])}\nPixels")
    grid[-1, 0].set_xlabel("Pixels")

    return figure


def _draw_sound(batch: Batch, masks: Tensor) -> Figure:
    labels, (num_samples, num_views) = find_axes(batch), masks.shape[:2]
    columns = min(num_samples, MAX_COLUMNS)
    blocks = -(-num_samples // columns)
    figure = create_figure(1.35 * blocks * (1 + num_views) + 1.0, describe_masks(masks, "frames"))
    grid = figure.subplots(blocks * (1 + num_views), columns, squeeze=False, sharex=True, sharey=True)
    for place in range(blocks * columns):
        block, column = divmod(place, columns)
        cells = grid[block * (1 + num_views) : (block + 1) * (1 + num_views), column]
        if place >= num_samples:
            for axes in cells:
                axes.set_axis_off()
            continue
        for view, axes in enumerate(cells):
            shown = show_sound(axes, batch, place, masks[place, view - 1] if view > 0 else None)
            if column == 0:
                axes.set_ylabel(f"{'Input' if view == 0 else f'View {view}'}\n{labels.height}")
        cells[0].set_title(f"Sample {int(batch.ids[place])}", fontsize=12)
        cells[-1].set_xlabel(labels.time)
    figure.colorbar(shown, ax=grid, label=labels.level, fraction=0.03, aspect=40)

    return figure
