"""Attention biases by distance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from d2v_plugin.layers.alibi import DistanceBias, alibi_slopes, align_bias, attention_biases, distance_weights, token_distances

MISC = json.loads((Path(__file__).parents[1] / "golden" / "misc.json").read_text())


@pytest.mark.parametrize("num_heads", MISC["alibi_slopes"])
def test_slopes_are_those_of_the_original(num_heads: str) -> None:
    assert alibi_slopes(int(num_heads)).tolist() == pytest.approx(MISC["alibi_slopes"][num_heads], rel=1e-6)


@pytest.mark.parametrize("metric", ["manhattan", "euclidean"])
def test_image_biases_are_those_of_the_original(metric: str) -> None:
    distances = token_distances(torch.arange(9).unsqueeze(0), 3, metric)
    (bias,) = attention_biases(distances, torch.ones(1, 1, 1, 1, 1), num_heads=2, num_extra_tokens=0)

    assert torch.allclose(bias[0], torch.tensor(MISC[f"alibi_2d_{metric}_side3_heads2"]), atol=1e-7)


def test_biases_follow_the_positions_of_the_kept_tokens() -> None:
    kept = torch.tensor([[0, 3, 7], [7, 0, 3]])
    (full,) = attention_biases(
        token_distances(torch.arange(8).unsqueeze(0), None, "manhattan"),
        torch.full((1, 1, 4, 1, 1), 0.5),
        num_heads=4,
        num_extra_tokens=0,
    )
    (bias,) = attention_biases(
        token_distances(kept, None, "manhattan"), torch.full((1, 1, 4, 1, 1), 0.5), num_heads=4, num_extra_tokens=0
    )

    for row in range(2):
        assert torch.equal(bias[row], full[0][:, kept[row]][:, :, kept[row]])


def test_extra_tokens_are_near_everything_and_negative_scales_act_as_zero() -> None:
    distances = token_distances(torch.arange(3).unsqueeze(0), None, "manhattan")
    scale = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1, 1)
    first, second = attention_biases(distances, scale, num_heads=2, num_extra_tokens=1)

    assert first.shape == (1, 2, 4, 4)
    assert not first[..., 0].any() and not first[..., 0, :].any() and first[..., 1, 3].abs().min() > 0
    assert not second.any()


def test_a_gpu_gets_rows_of_a_multiple_of_8_once_and_a_cpu_the_bias_as_it_is() -> None:
    bias = torch.ones(2, 4, 13, 13)
    assert align_bias(bias) is bias

    aligned = align_bias(bias.to("meta"))
    assert aligned.shape == bias.shape and aligned.stride() == (4 * 13 * 16, 13 * 16, 16, 1)
    whole = torch.ones(2, 4, 16, 16, device="meta")
    assert align_bias(whole) is whole


def test_scale_is_learned() -> None:
    scale = torch.ones(1, 1, 2, 1, 1, requires_grad=True)
    distances = token_distances(torch.arange(4).unsqueeze(0), None, "manhattan")
    (bias,) = attention_biases(distances, scale, num_heads=2, num_extra_tokens=0)
    bias.sum().backward()

    assert scale.grad is not None
    assert torch.allclose(scale.grad.flatten(), -alibi_slopes(2) * distances.sum())


@pytest.mark.parametrize("biased", [None, 3])
def test_the_bias_of_a_long_sequence_is_made_for_a_few_queries_at_a_time(biased: int | None) -> None:
    positions, scale = torch.arange(9).unsqueeze(0), torch.full((1, biased or 4, 1, 1), 0.7)
    padding_mask = (torch.arange(11) >= 8)[None, None, None]
    distances = token_distances(positions, None, "manhattan")
    (whole,) = attention_biases(distances, scale[None], num_heads=4, num_extra_tokens=2, num_biased_heads=biased)
    whole = whole.masked_fill(padding_mask, -torch.inf)
    lazy = DistanceBias(positions, distance_weights(scale, 4, biased), num_extra_tokens=2, padding_mask=padding_mask)

    for start, stop in ((0, 11), (0, 1), (1, 4), (2, 5), (7, 11)):
        torch.testing.assert_close(lazy.of_queries(start, stop, torch.float32), whole[:, :, start:stop])


def test_distances_take_no_more_memory_than_they_must() -> None:
    distances = token_distances(torch.arange(5).unsqueeze(0), None, "manhattan")
    assert distances.dtype == torch.float32 and distances[0, 1].tolist() == [1, 0, 1, 2, 3]
