"""Pictures of mask samplers: a few masks of each, and how often each place is masked."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from matplotlib.figure import Figure

from d2v_plugin.core.random import row_keys
from d2v_plugin.masking.base import MaskSampler
from d2v_plugin.pictures.canvas import count_on, cover, create_figure

NUM_MASKS = 6
NUM_DRAWS = 512


def draw_samplers(samplers: Mapping[str, MaskSampler], shape: tuple[int, ...], *, seed: int = 0) -> Figure:
    """Draw a row for each sampler.

    :param shape: (H, W) of a grid of patches, or (S,) of a sequence.
    """
    keys = row_keys(seed, 1, torch.arange(NUM_DRAWS), num_views=1)
    masks = {name: sampler(keys, shape).view(NUM_DRAWS, *shape) for name, sampler in samplers.items()}
    titles = {name: f"{name}\n{int(x[0].sum())} of {math.prod(shape)}" for name, x in masks.items()}

    return _draw_grids(masks, titles) if len(shape) == 2 else _draw_sequences(masks, titles)


def _draw_grids(masks: Mapping[str, torch.Tensor], titles: Mapping[str, str]) -> Figure:
    figure = create_figure(1.75 * len(masks) + 1.0, "Masks of each sampler (tinted), and how often each patch is masked")
    grid = figure.subplots(len(masks), NUM_MASKS + 1, squeeze=False, sharex=True, sharey=True)
    for row, (name, x) in zip(grid, masks.items(), strict=True):
        height, width = x.shape[1:]
        for axes, mask in zip(row[:-1], x, strict=False):
            cover(axes, mask.numpy(), (0, width, height, 0))
            axes.set_aspect("equal")
        share = x.float().mean(dim=0)
        shown = row[-1].imshow(share.numpy(), extent=(0, width, height, 0), vmin=0.0, vmax=1.0, interpolation="nearest")
        row[-1].set_title(f"{float(share.min()):.2f} to {float(share.max()):.2f}", fontsize=10)
        row[0].set_ylabel(f"{titles[name]}\nPatches")
        count_on(row[0], x=True, y=True)
    for axes in grid[-1]:
        axes.set_xlabel("Patches")
    figure.colorbar(shown, ax=grid, label=f"Share of {NUM_DRAWS} masks", fraction=0.02, aspect=30)

    return figure


def _draw_sequences(masks: Mapping[str, torch.Tensor], titles: Mapping[str, str]) -> Figure:
    figure = create_figure(1.75 * len(masks) + 1.0, "Masks of each sampler (tinted), and how often each token is masked")
    grid = figure.subplots(len(masks), 2, squeeze=False, sharex=True, sharey="col", width_ratios=[3, 2])
    for (drawn, often), (name, x) in zip(grid, masks.items(), strict=True):
        cover(drawn, x[:NUM_MASKS].numpy(), (0, x.size(1), NUM_MASKS + 0.5, 0.5))
        drawn.set_aspect("auto")
        drawn.set_ylabel(f"{titles[name]}\nMask")
        count_on(drawn, y=True)
        often.plot(x.float().mean(dim=0).numpy())
        often.set_ylabel("Share masked")
        often.set_ylim(0.0, 1.0)
        often.grid(alpha=0.3)
    for axes in grid[-1]:
        axes.set_xlabel("Token")

    return figure
