"""A restricted context of the teacher: windows of positions around each one (data2vec, section 5.5)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def compute_reach(shape: tuple[int, ...], lengths: Tensor, *, share: float | None, window: int | None) -> Tensor:
    """Compute how far a position sees to each side, (N,); one of ``share`` and ``window`` is given.

    :param shape: (S,) of sequences or (H, W) of images.
    :param lengths: (N,) how many positions each sample has.
    :param share: of the sample that is seen (images: of the area), half of it to each side.
    :param window: the reach itself.
    """
    if share is None:
        assert window is not None
        return torch.full_like(lengths, window)
    width = lengths * share

    return (width.sqrt() if len(shape) == 2 else width) / 2


def context_window(shape: tuple[int, ...], reach: Tensor, *, num_extra_tokens: int) -> Tensor:
    """Mark which positions see each other: (N or 1, X + S, X + S), True = may attend.

    Extra tokens see everything, but only themselves are seen: otherwise they would carry the whole sample everywhere.

    :param shape: (S,) of sequences or (H, W) of images, row by row.
    :param reach: (N or 1,) how far a position sees, to each side.
    """
    positions = torch.arange(math.prod(shape), device=reach.device)
    if len(shape) == 2:
        down, across = positions // shape[1], positions % shape[1]
        distance = torch.maximum((down[:, None] - down).abs(), (across[:, None] - across).abs())
    else:
        distance = (positions[:, None] - positions).abs()
    # (S, S), (N) -> (N, S, S) -> (N, X + S, X + S)
    window = F.pad(distance <= reach[:, None, None], (num_extra_tokens, 0, num_extra_tokens, 0))
    window[:, :num_extra_tokens] = True

    return window
