"""Pixels as targets."""

from __future__ import annotations

import torch
from torch import Tensor


def normalize_patches(images: Tensor, patch_size: int) -> Tensor:
    """Cut images into patches and give the pixels of each zero mean and unit variance (MAE, section 3).

    :param images: (N, C, H, W)
    :param patch_size: P, in pixels.
    :returns: (N, S, P·P·C) fp32, patches row by row, the channels of a pixel adjacent.
    """
    num_samples, channels, height, width = images.shape

    # (N, C, H, W) -> (N, C, H/P, P, W/P, P) -> (N, H/P, W/P, P, P, C)
    x = images.float().view(num_samples, channels, height // patch_size, patch_size, width // patch_size, patch_size)
    x = x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    variance, mean = torch.var_mean(x, dim=-1, keepdim=True)

    return (x - mean) * torch.rsqrt(variance + 1e-6)
