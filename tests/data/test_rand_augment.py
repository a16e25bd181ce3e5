"""RandAugment: every operation, at every magnitude, and nothing but seed, epoch and sample."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from d2v_plugin.core.validation import ensure_valid
from d2v_plugin.data import rand_augment as module
from d2v_plugin.data.rand_augment import OPERATIONS, Operation, RandAugmentConfig, rand_augment

GOLDEN = Path(__file__).parents[1] / "golden"
AUGMENTATION = json.loads((GOLDEN / "augmentation.json").read_text())
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

    left = OPERATIONS[13](image, 8 / (0.45 * 32), 1.0, FILL)

    assert torch.equal(left[:, :, : 32 - 8], image[:, :, 8:])
    assert left[:, :, 32 - 8 :].float().mean(dim=(1, 2)).tolist() == FILL


def test_pixels_are_timms() -> None:
    expected = load_file(GOLDEN / "rand_augment.safetensors")
    image = expected.pop("image")
    names = list(AUGMENTATION["rand_augment"]["operations"])

    for name, operation in zip(names, OPERATIONS, strict=True):
        for sign in (1.0, -1.0):
            pixels = expected[f"{name}/{'+' if sign > 0 else '-'}"].int()
            difference = (operation(image, 0.9, sign, FILL).int() - pixels).abs()
            # Colours are rounded elsewhere; geometry is exact.
            assert int(difference.max()) <= (0 if name.startswith(("Rotate", "Shear", "Translate")) else 2), (name, sign)


def test_operations_and_magnitudes_are_as_frequent_as_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, calls = AUGMENTATION["rand_augment"], []
    num_images = 4000

    def record(index: int) -> Operation:
        def operation(image: Tensor, share: float, sign: float, fill: list[float]) -> Tensor:
            calls.append((index, share, sign))
            return image

        return operation

    monkeypatch.setattr(module, "OPERATIONS", [record(i) for i in range(len(OPERATIONS))])
    applied = []
    for i in range(num_images):
        before = len(calls)
        rand_augment(torch.zeros(3, 1, 1, dtype=torch.uint8), RandAugmentConfig(), FILL, seed=1, epoch=0, sample_id=i)
        applied.append(len(calls) - before)
    which, shares, signs = (np.array(column) for column in zip(*calls, strict=True))

    for index, (name, share) in enumerate(expected["operations"].items()):
        assert (which == index).sum() / num_images == pytest.approx(share, abs=0.018), name
    for count, share in expected["applied"].items():
        assert applied.count(int(count)) / num_images == pytest.approx(share, abs=0.035)
    mean, deviation, *quantiles = expected["magnitude"]
    assert (10 * shares).mean() == pytest.approx(mean, abs=0.04)
    assert (10 * shares).std() == pytest.approx(deviation, abs=0.03)
    np.testing.assert_allclose(np.quantile(10 * shares, [0.1, 0.5, 0.9, 1.0]), quantiles[1:], atol=0.08)
    assert (shares == 1.0).mean() == pytest.approx(expected["at_most"], abs=0.01)
    assert (signs > 0).mean() == pytest.approx(0.5, abs=0.04)


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
