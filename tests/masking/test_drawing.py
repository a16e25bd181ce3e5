"""From a step, a batch and its lengths to masked views."""

from __future__ import annotations

import pytest
import torch

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import StepInfo, Views
from d2v_plugin.masking.drawing import draw_views, split_mask
from d2v_plugin.masking.random_blocks import BlockMaskConfig, InverseBlockMaskSampler, RandomMaskConfig, RandomMaskSampler

STEP = StepInfo(number=3, seed=1)
SAMPLER = RandomMaskSampler(RandomMaskConfig(ratio=0.5))


def text(*lengths: int) -> tuple[Batch, torch.Tensor]:
    """Token ids of these lengths, and their padding."""
    padding_mask = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
    tokens = torch.zeros(padding_mask.shape, dtype=torch.int64)

    return Batch(Modality.TEXT, tokens, torch.arange(len(lengths)), padding_mask, min(lengths)), padding_mask


def test_views_are_the_masks_that_the_sampler_draws() -> None:
    images = Batch(Modality.IMAGE, torch.zeros(2, 3, 32, 32), torch.tensor([4, 7]))
    sampler = InverseBlockMaskSampler(BlockMaskConfig(ratio=0.75))

    views = draw_views(sampler, STEP, images, 64, num_views=3, grid=(4, 16))

    assert views.grid == (4, 16) and torch.equal(views.mask, sampler(STEP.keys(images.ids, 3), (4, 16)))
    assert torch.equal(views.keys, STEP.keys(images.ids, 3))
    assert (views.kept.shape, views.masked.shape, views.num_views, views.padding_mask) == ((6, 16), (6, 48), 3, None)
    assert torch.equal(torch.cat([views.kept, views.masked], dim=1).sort(dim=1).values, torch.arange(64).expand(6, -1))


def test_padding_is_never_masked_and_the_shortest_sample_says_how_much_is() -> None:
    batch, padding_mask = text(12, 8)

    views = draw_views(SAMPLER, STEP, batch, 12, padding_mask, num_views=2)

    assert views.padding_mask is not None
    assert torch.equal(views.padding_mask, padding_mask.repeat_interleave(2, dim=0))
    assert views.masked.shape == (4, 4)
    assert not (views.mask & views.padding_mask).any()


def test_lengths_of_the_input_are_not_those_of_the_tokens() -> None:
    batch, padding_mask = text(12, 8)

    views = draw_views(SAMPLER, STEP, batch, 6, padding_mask[:, ::2], output_length=lambda length: length // 2)

    assert views.masked.shape == (2, 2)


def test_padding_can_be_taken_for_tokens_as_by_the_original() -> None:
    batch, padding_mask = text(12, 8)

    views = draw_views(SAMPLER, STEP, batch, 12, padding_mask, avoid_padding=False)

    assert views.masked.shape == (2, 6)
    assert views.padding_mask is not None and torch.equal(views.padding_mask, padding_mask)


def test_given_masks_are_taken_as_they_are() -> None:
    batch, _ = text(5)
    mask = torch.tensor([[True, False, False, True, False]])

    views = draw_views(SAMPLER, STEP, batch, 5, mask=mask)

    assert (views.kept.tolist(), views.masked.tolist()) == ([[1, 2, 4]], [[0, 3]])
    assert torch.equal(views.mask, mask)


def test_padding_without_the_shortest_length_is_refused() -> None:
    batch, padding_mask = text(12, 8)
    batch.min_length = None

    with pytest.raises(ValueError, match=r"`batch\.min_length` must be given with `batch\.padding_mask`"):
        draw_views(SAMPLER, STEP, batch, 12, padding_mask)


def test_splitting_is_the_inverse_of_marking() -> None:
    mask = SAMPLER(STEP.keys(torch.arange(20)), (31,))

    views = Views(*split_mask(mask, SAMPLER.num_masked(31)), None, torch.arange(20))

    assert torch.equal(views.mask, mask)
