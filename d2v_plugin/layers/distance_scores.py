"""Biases by distance that the attention kernel computes by itself, from positions, so that no matrix of them exists; for GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from d2v_plugin.layers.alibi import token_coordinates


@dataclass(frozen=True)
class DistanceScores:
    """What :func:`d2v_plugin.layers.alibi.attention_biases` would build, as a formula."""

    coordinates: Tensor
    """(R, X + K, 1 or 2) fp32; those of extra tokens mean nothing."""

    weights: Tensor
    """(H,) the factors of distances, see :func:`d2v_plugin.layers.alibi.distance_weights`."""

    num_extra_tokens: int
    """X: these are at distance 0 from everything."""

    euclidean: bool
    """Of patches: the root of the sum of squares instead of the sum."""

    padding_mask: Tensor | None
    """(R, X + K), True = padding; None = nothing is padded."""


def computes_in_kernel(x: Tensor) -> bool:
    """Tell whether attention of ``x`` can compute its bias: on a GPU, unless every sum is to have a fixed order."""
    return x.device.type == "cuda" and not torch.are_deterministic_algorithms_enabled()


def distance_scores(
    positions: Tensor,
    weights: Tensor,
    *,
    grid_width: int | None,
    metric: str,
    num_extra_tokens: int,
    padding_mask: Tensor | None,
) -> list[DistanceScores]:
    """
    :param positions, grid_width, metric: as for :func:`d2v_plugin.layers.alibi.token_distances`.
    :param weights: (1 or L, 1, H, 1, 1) from :func:`d2v_plugin.layers.alibi.distance_weights`.
    :param padding_mask: (R, X + K), True = padding; None = nothing is padded.
    :returns: one for each scale.
    """
    coordinates = token_coordinates(positions, grid_width, metric)
    coordinates = torch.nn.functional.pad(coordinates, (0, 0, num_extra_tokens, 0))
    is_euclidean = metric == "euclidean"

    return [DistanceScores(coordinates, w.flatten(), num_extra_tokens, is_euclidean, padding_mask) for w in weights]


def attend_by_distance(q: Tensor, k: Tensor, v: Tensor, scores: DistanceScores) -> Tensor:
    """Attention without dropout; (R, H, K, E) each.

    The gradients of the weights are sums in an order that varies (atomics).
    """
    # One row of positions may stand for all samples.
    first, *others = scores.coordinates.expand(q.size(0), -1, -1).unbind(-1)
    second = others[0] if others else None
    padding_mask = None if scores.padding_mask is None else scores.padding_mask.expand(q.size(0), -1)
    weights, num_extra, is_euclidean = scores.weights, scores.num_extra_tokens, scores.euclidean

    def add_bias(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = (first[row, query] - first[row, key]).abs()
        if second is not None:
            other = (second[row, query] - second[row, key]).abs()
            distance = (distance * distance + other * other).sqrt() if is_euclidean else distance + other
        distance = torch.where((query < num_extra) | (key < num_extra), 0.0, distance)
        score = score + weights[head] * distance

        return score if padding_mask is None else torch.where(padding_mask[row, key], -torch.inf, score)

    attend: Any = flex_attention
    if q.device.type == "cuda" and not torch.compiler.is_compiling():
        attend = _compile_kernel()

    return attend(q, k, v, score_mod=add_bias)  # type: ignore[no-any-return]


@lru_cache(maxsize=1)
def _compile_kernel() -> Any:
    """The kernel where blocks are not compiled: without a compiler it would build all that it is to save."""
    return torch.compile(flex_attention)
