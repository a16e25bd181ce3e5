"""Random erasing, MixUp and CutMix: amounts, labels, and nothing but seed, epoch and sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from d2v_plugin.data.image_mixing import MixingConfig, erase, mix, one_hot


def mix_pairs(config: MixingConfig, count: int = 200, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Pairs of an image of zeros and one of ones, with the labels 0 and 1."""
    images = torch.zeros(2 * count, 1, 16, 16)
    images[1::2] = 1.0
    shares = one_hot(torch.arange(2).repeat(count), 2)
    mix(images, shares, [(2 * i, 2 * i + 1) for i in range(count)], [(0, i) for i in range(count)], config, seed=seed)

    return images, shares


@pytest.mark.parametrize("config", [MixingConfig(mixup=0.8), MixingConfig(cutmix=1.0), MixingConfig(mixup=0.7, cutmix=1.0)])
def test_labels_say_how_much_of_each_image_is_there(config: MixingConfig) -> None:
    images, shares = mix_pairs(config)

    torch.testing.assert_close(shares.sum(1), torch.ones(len(shares)))
    torch.testing.assert_close(images.mean(dim=(1, 2, 3)), shares[:, 1], rtol=0, atol=1e-5)
    # Both images of a pair lose the same.
    torch.testing.assert_close(shares[0::2, 0], shares[1::2, 1])


def test_shares_follow_the_beta_distribution() -> None:
    _, shares = mix_pairs(MixingConfig(mixup=0.8), count=2000)

    own = shares[0::2, 0].numpy()
    expected = np.random.default_rng(0).beta(0.8, 0.8, 20_000)
    for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert np.quantile(own, quantile) == pytest.approx(np.quantile(expected, quantile), abs=0.04)


def test_as_many_pairs_are_mixed_as_configured_and_each_way_equally_often() -> None:
    images, shares = mix_pairs(MixingConfig(mixup=1.0, cutmix=1.0, probability=0.8), count=1000)

    untouched = float((shares[0::2, 0] == 1.0).float().mean())
    is_cut = [set(image.unique().tolist()) <= {0.0, 1.0} for image in images[0::2]]
    assert untouched == pytest.approx(0.2, abs=0.06)
    # What is cut, and what is untouched, has but two values.
    assert sum(is_cut) / 1000 == pytest.approx(0.6, abs=0.06)


def test_mixing_depends_on_seed_and_sample_alone() -> None:
    config = MixingConfig(mixup=0.7, cutmix=1.0)
    images, shares = mix_pairs(config, count=8)
    torch.manual_seed(3)

    again, _ = mix_pairs(config, count=8)
    other, _ = mix_pairs(config, count=8, seed=2)

    assert torch.equal(images, again) and not torch.equal(images, other)
    assert len({round(float(share), 6) for share in shares[0::2, 0]}) > 4, "each pair has a share of its own"


def test_erasing_puts_noise_into_a_rectangle() -> None:
    areas, values = [], []
    for sample_id in range(400):
        image = torch.full((3, 32, 32), 9.0)
        erase(image, 0.25, seed=1, epoch=0, sample_id=sample_id)
        erased = image != 9.0
        if erased.any():
            rows, columns = erased[0].any(1).nonzero(), erased[0].any(0).nonzero()
            box = erased[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert box.all() and int(erased.sum()) == box.numel()
            areas.append(box.numel() / 3 / 1024)
            values.append(image[erased])

    assert len(areas) / 400 == pytest.approx(0.25, abs=0.06)
    assert min(areas) > 0.01 and max(areas) < 0.36
    noise = torch.cat(values)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.02) and float(noise.std()) == pytest.approx(1.0, abs=0.02)


def test_erasing_depends_on_seed_epoch_and_sample_alone() -> None:
    def run(seed: int, epoch: int, sample_id: int) -> Tensor:
        image = torch.zeros(3, 16, 16)
        erase(image, 1.0, seed=seed, epoch=epoch, sample_id=sample_id)

        return image

    assert torch.equal(run(1, 2, 3), run(1, 2, 3))
    assert not any(torch.equal(run(1, 2, 3), run(*other)) for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)))
