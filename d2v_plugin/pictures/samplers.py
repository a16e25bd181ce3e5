"""Pictures of mask samplers: a few masks of each, and how often each place is masked."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from PIL import Image
from torch import Tensor

from d2v_plugin.core.random import row_keys
from d2v_plugin.masking.base import MaskSampler
from d2v_plugin.pictures.drawing import arrange, color, cover, magnify

NUM_MASKS = 6
NUM_DRAWS = 512
CELL = 8
STRIP_HEIGHT = 16


def draw_samplers(samplers: Mapping[str, MaskSampler], shape: tuple[int, ...], *, seed: int = 0) -> Image.Image:
    """A row for each sampler.

    :param shape: (H, W) of a grid of patches, or (S,) of a sequence.
    """
    is_grid = len(shape) == 2
    grid = shape if is_grid else (1, *shape)
    height, width = (shape[0] * CELL, shape[1] * CELL) if is_grid else (STRIP_HEIGHT, max(480, shape[0] * 2))

    def show(mask: Tensor) -> Tensor:
        shown = magnify(cover(torch.full((3, *grid), 230, dtype=torch.uint8), mask.view(grid), strength=1.0), height, width)
        if not is_grid:
            shown[:, -1] = 255  # tells strips apart

        return shown

    rows = []
    for name, sampler in samplers.items():
        keys = row_keys(seed, 1, torch.arange(NUM_DRAWS), num_views=1)
        masks = sampler(keys, shape)
        share = masks.float().mean(dim=0)
        caption = (
            f"{name}: {int(masks[0].sum())} of {math.prod(shape)} masked (red); the last: how often, "
            f"{float(share.min()):.2f} (dark) to {float(share.max()):.2f} (bright)"
        )
        cells = [*(show(mask) for mask in masks[:NUM_MASKS]), magnify(color(share.view(grid)), height, width)]
        rows.append((caption, cells if is_grid else [torch.cat(cells, dim=1)]))

    return arrange(rows)
