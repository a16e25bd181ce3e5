"""RandAugment: every operation, at every magnitude, and nothing but seed, epoch and sample."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from d2v_plugin.core.validation import ensure_valid
from d2v_plugin.data.rand_augment import OPERATIONS, RandAugmentConfig, rand_augment

FILL = [124.0, 116.0, 104.0]


def make_image() -> Tensor:
    return torch.randint(20, 220, (3, 24, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("index", range(len(OPERATIONS)))
def test_every_operation_gives_an_image_of_the_same_kind(index: int) -> None:
    image = make_image()

    for share in (0.0, 0.5, 1.0):
        for sign in (1.0, -1.0):
            changed = OPERATIONS[index](image, share, sign, FILL)
            assert changed.shape == image.shape and changed.dtype == torch.uint8
    assert not torch.equal(OPERATIONS[index](image, 0.9, 1.0, FILL), image)
    assert torch.equal(image, make_image()), "the input was changed"


def test_nothing_of_magnitude_zero_leaves_the_image_as_it_is_except_what_has_no_magnitude() -> None:
    image = make_image()

    changed = [index for index, operation in enumerate(OPERATIONS) if not torch.equal(operation(image, 0.0, 1.0, FILL), image)]

    # Auto-contrast, equalise and invert; four bits is the least that posterise takes away.
    assert changed == [0, 1, 2, 4]


def test_geometry_moves_what_it_says() -> None:
    image = make_image()

    right = OPERATIONS[13](image, 0.5, 1.0, FILL)

    # 0.45 · 0.5 of the width of 32.
    assert torch.equal(right[:, :, 8:], image[:, :, 1 : 32 - 7]) or torch.allclose(
        right[:, :, 8:].float(), 0.2 * image[:, :, 0:24].float() + 0.8 * image[:, :, 1:25].float(), atol=1.0
    )
    assert right[:, :, :7].float().mean(dim=(1, 2)).tolist() == pytest.approx(FILL, abs=0.6)


def test_only_seed_epoch_and_sample_matter() -> None:
    image, config = make_image(), RandAugmentConfig(probability=1.0)
    base = rand_augment(image, config, FILL, seed=1, epoch=2, sample_id=3)
    torch.manual_seed(5)

    assert torch.equal(rand_augment(image, config, FILL, seed=1, epoch=2, sample_id=3), base)
    others = [(2, 2, 3), (1, 3, 3), (1, 2, 4)]
    for seed, epoch, sample_id in others:
        assert not torch.equal(rand_augment(image, config, FILL, seed=seed, epoch=epoch, sample_id=sample_id), base)


def test_half_of_the_drawn_operations_are_applied() -> None:
    image, config = make_image(), RandAugmentConfig()

    same = sum(torch.equal(rand_augment(image, config, FILL, seed=1, epoch=0, sample_id=i), image) for i in range(200))

    assert 30 < same < 75  # a quarter


@pytest.mark.parametrize("settings", [{"num_operations": -1}, {"magnitude": 11.0}, {"probability": 2.0}])
def test_impossible_settings_are_named(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        ensure_valid(RandAugmentConfig(**settings))  # type: ignore[arg-type]
