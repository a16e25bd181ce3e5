"""Pooling sees valid positions only; layers are named from either end."""

from __future__ import annotations

import math

import pytest
import torch

from d2v_plugin.models.base import Features
from d2v_plugin.models.pooling import pool_features, resolve_layers


def test_pooling_ignores_what_stands_at_padding() -> None:
    x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    padding_mask = torch.tensor([[False, False, True, True], [False] * 4])

    broken = x.clone()
    broken[0, 2:] = math.nan

    pooled = pool_features(Features(x, padding_mask, [broken], None))

    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, torch.stack([x[0, :2].float().mean(0), x[1].float().mean(0)]))
    torch.testing.assert_close(pool_features(Features(x, None, [x], None)), x.float().mean(dim=1))


def test_statistics_are_mean_and_deviation_of_the_valid_positions() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3)
    padded = torch.cat([x, torch.full((2, 2, 3), torch.inf)], dim=1)
    padding_mask = torch.arange(7).expand(2, -1) >= 5

    pooled = pool_features(Features(padded, padding_mask, [padded], None), pooling="statistics")

    torch.testing.assert_close(pooled, torch.cat([x.mean(dim=1), x.std(dim=1, correction=0)], dim=1))


def test_the_class_token_is_the_last_extra_token_or_the_first_position() -> None:
    x, extra = torch.randn(2, 5, 3), torch.randn(2, 2, 3)

    assert pool_features(Features(x, None, [x, 2 * x], extra, [extra, 2 * extra]), 1, "cls").equal(2 * extra[:, 1])
    assert pool_features(Features(x, None, [x, 2 * x], None), 0, "cls").equal(x[:, 0])


def test_layers_are_counted_from_either_end() -> None:
    assert resolve_layers([-1, 0], 4) == [3, 0] and resolve_layers("all", 3) == [0, 1, 2]
    for wrong in ([4], [-5], [], [1, -3]):
        with pytest.raises(ValueError, match="`layers` must"):
            resolve_layers(wrong, 4)
