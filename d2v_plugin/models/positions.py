"""Position tables of images, resized from one grid of patches to another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from d2v_plugin.core.batch import Grid

# CLS to patch, patch to CLS, CLS to CLS.
NUM_CLS_ROWS = 3


def resize_absolute(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """Stretch positions, (1, S, D): as in MAE's fine-tuning the outer patches mean the edges of the image at any size."""
    if old == new:
        return table
    # (1, S, D) -> (1, D, H, W)
    return _resize(table.transpose(1, 2).unflatten(2, old), new).flatten(2).transpose(1, 2)


def resize_relative(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """Stretch biases by offset, (P, H), likewise: a bias belongs to a distance in the image, not to a number of patches.

    :param table: all offsets of two patches of an ``old`` grid row by row, then the three rows of the CLS token, which stay.
    """
    if old == new:
        return table
    offsets, cls_rows = table[:-NUM_CLS_ROWS], table[-NUM_CLS_ROWS:]
    # (P - 3, H) -> (1, H, 2·rows - 1, 2·columns - 1)
    resized = _resize(offsets.T.unflatten(1, count_offsets(old)).unsqueeze(0), count_offsets(new))

    return torch.cat([resized[0].flatten(1).T, cls_rows])


def count_offsets(grid: Grid) -> Grid:
    """How many offsets two patches of a grid can have, down and across."""
    return 2 * grid[0] - 1, 2 * grid[1] - 1


def _resize(table: Tensor, shape: Grid) -> Tensor:
    return F.interpolate(table.float(), shape, mode="bicubic", align_corners=False).to(table.dtype)
