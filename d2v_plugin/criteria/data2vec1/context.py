"""A restricted context of the teacher: windows of positions around each one (data2vec, section 5.5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def compute_reach(lengths: Tensor, *, share: float | None, window: int | None, is_image: bool) -> Tensor:
    """How far a position sees to each side, (N,); one of ``share`` and ``window`` is given.

    :param lengths: (N,) how many positions each sample has.
    :param share: of the sample that is seen (images: of the area), half of it to each side.
    :param window: the reach itself.
    """
    if share is None:
        assert window is not None
        return torch.full_like(lengths, window)
    if is_image:
        return (lengths * share).sqrt() / 2

    return lengths * share / 2


def context_window(length: int, reach: Tensor, *, is_image: bool, num_extra_tokens: int) -> Tensor:
    """Which positions see each other.

    Extra tokens see everything, but only themselves are seen: otherwise they would carry the whole sample everywhere.

    :param length: S
    :param reach: (N or 1,) how far a position sees, to each side.
    :returns: (N or 1, X + S, X + S) bool
    """
    positions = torch.arange(length, device=reach.device)
    if is_image:
        side = round(length**0.5)
        down, across = positions // side, positions % side
        distance = torch.maximum((down[:, None] - down).abs(), (across[:, None] - across).abs())
    else:
        distance = (positions[:, None] - positions).abs()
    # (S, S), (N) -> (N, S, S) -> (N, X + S, X + S)
    window = F.pad(distance <= reach[:, None, None], (num_extra_tokens, 0, num_extra_tokens, 0))
    window[:, :num_extra_tokens] = True

    return window
