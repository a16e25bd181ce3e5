"""Masked views of a batch: the one way from a step, a batch and its lengths to the tokens that are kept and masked."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from d2v_plugin.core.batch import Batch, Grid
from d2v_plugin.core.contracts import StepInfo, Views
from d2v_plugin.masking.base import MaskSampler, Shape


def draw_views(
    sampler: MaskSampler,
    step: StepInfo,
    batch: Batch,
    length: int,
    padding_mask: Tensor | None = None,
    *,
    output_length: Callable[[int], int] = int,
    num_views: int = 1,
    avoid_padding: bool = True,
    grid: Grid | None = None,
    mask: Tensor | None = None,
) -> Views:
    """Draw M masked views of each sample; every view masks equally many tokens.

    :param length: S, how many tokens a sample of the batch has, padding included.
    :param padding_mask: (N, S), True = padding, at the resolution of the tokens.
    :param output_length: how many tokens an input of so many samples or token ids gives; as many, by default.
    :param num_views: M
    :param avoid_padding: False = draw as if padding were part of the sample, which the original does.
    :param grid: (H, W) in which the tokens lie, row by row; None = in a sequence.
    :param mask: (N·M, S), True = masked, equally many in every row; None = drawn from (seed, step, sample id, view).
    :raises ValueError: the batch is padded and does not say the length of its shortest sample, or the sampler's settings mask
        nothing or everything of these samples.
    """
    keys = step.keys(batch.ids, num_views)
    if padding_mask is not None:
        padding_mask = padding_mask.repeat_interleave(num_views, dim=0)

    if mask is not None:
        return Views(*split_mask(mask, int(mask[0].sum())), padding_mask, keys, num_views, grid)

    shape: Shape = (length,) if grid is None else grid
    min_length = None
    avoided = padding_mask if avoid_padding else None
    if avoided is not None:
        if batch.min_length is None:
            raise ValueError("`batch.min_length` must be given with `batch.padding_mask`.")
        min_length = output_length(batch.min_length)
    mask = sampler(keys, shape, padding_mask=avoided, min_length=min_length)
    num_masked = sampler.num_masked(shape if min_length is None else min_length)

    return Views(*split_mask(mask, num_masked), padding_mask, keys, num_views, grid)


def split_mask(mask: Tensor, num_masked: int) -> tuple[Tensor, Tensor]:
    """Turn masks into positions, without host synchronisation; the inverse of :attr:`Views.mask`.

    :param mask: (R, S) bool, True = masked.
    :param num_masked: how many positions every row masks: :meth:`MaskSampler.num_masked`.
    :returns: (R, S - num_masked) int64 kept positions and (R, num_masked) int64 masked positions, both ascending.
    """
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)
    num_kept = mask.size(1) - num_masked

    return order[:, :num_kept], order[:, num_kept:]
