"""What mask samplers do: a few masks of each, and how often each place is masked."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from PIL import Image
from torch import Tensor

from d2v_plugin.core.random import row_keys
from d2v_plugin.masking.base import MaskSampler
from d2v_plugin.pictures.drawing import arrange, colour, cover, magnify

NUM_MASKS = 6
NUM_DRAWS = 512
CELL = 8
STRIP_HEIGHT = 16


def draw_samplers(samplers: Mapping[str, MaskSampler], shape: tuple[int, ...], *, seed: int = 0) -> Image.Image:
    """A row for each sampler.

    :param shape: (H, W) of a grid of patches, or (S,) of a sequence.
    """
    rows = []
    for name, sampler in samplers.items():
        keys = row_keys(seed, 1, torch.arange(NUM_DRAWS), num_views=1)
        masks = sampler(keys, shape)
        share = masks.float().mean(dim=0)
        caption = (
            f"{name}: {int(masks[0].sum())} of {math.prod(shape)} masked (red); the last: how often, "
            f"{float(share.min()):.2f} (dark) to {float(share.max()):.2f} (bright)"
        )
        cells = [_show(mask, shape) for mask in masks[:NUM_MASKS]]
        often = colour(_as_grid(share, shape))
        cells.append(magnify(often, *_size(shape)))
        rows += [(caption, cells)] if len(shape) == 2 else [(caption, [torch.cat(cells, dim=1)])]

    return arrange(rows)


def _show(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    grid = _as_grid(mask, shape)
    blank = torch.full((3, *grid.shape), 230, dtype=torch.uint8)
    shown = magnify(cover(blank, grid, strength=1.0), *_size(shape))
    # A line below each strip, so that strips can be told apart.
    if len(shape) == 1:
        shown[:, -1] = 255

    return shown


def _as_grid(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return x.view(shape if len(shape) == 2 else (1, -1))


def _size(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[0] * CELL, shape[1] * CELL) if len(shape) == 2 else (STRIP_HEIGHT, max(480, shape[0] * 2))
