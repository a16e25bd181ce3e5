"""From tokens to one vector per sample, for probes and for extracted features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from d2v_plugin.models.base import Features

Pooling = Literal["mean", "statistics", "cls"]
"""Ways to make one vector of tokens: their mean, mean and standard deviation, or the class token's output.

Targets that are normalised over time (``instance_norm_layers``) have mean zero in every utterance, so what a trained model
knows of an utterance is not in the mean of its last layers: speech wants ``statistics``.
"""

Layers = list[int] | Literal["all"]
"""Blocks by index, from 0, or from the last one, -1."""


def resolve_layers(layers: Layers, num_layers: int) -> list[int]:
    """The chosen blocks, counted from 0.

    :param num_layers: how many blocks the model has.
    :raises ValueError: there is no such block, one is named twice, or none is named.
    """
    if layers == "all":
        return list(range(num_layers))

    chosen = []
    for layer in layers:
        if not isinstance(layer, int) or not -num_layers <= layer < num_layers:
            raise ValueError(f"`layers` must be between {-num_layers} and {num_layers - 1}, or `all`, but has {layer}.")
        chosen.append(layer % num_layers)
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"`layers` must name at least one block and none twice, but is {layers}.")

    return chosen


def pool_features(features: Features, layer: int = -1, pooling: Pooling = "mean") -> Tensor:
    """Pool the output of a block: (N, S, D) -> (N, D) float32, or (N, 2·D) with ``statistics``.

    :param layer: index into ``features.layers``; negative ones count from the last block.
    :param pooling: see :data:`Pooling`; models without extra tokens have their class token (``<s>``) at the first position.
    :raises ValueError: there is no such block.
    """
    (layer,) = resolve_layers([layer], len(features.layers))
    if pooling == "cls":
        return _class_token(features, layer).to(torch.float32)
    return pool_tokens(features.layers[layer], features.padding_mask, pooling)


def pool_tokens(x: Tensor, padding_mask: Tensor | None, pooling: Literal["mean", "statistics"] = "mean") -> Tensor:
    """Pool the valid positions: (N, S, D) -> (N, D) float32, or (N, 2·D) with ``statistics``.

    :param padding_mask: (N, S), True = padding; None = nothing is padded.
    """
    x = x.to(torch.float32)

    # Padded positions may hold anything, infinities included.
    valid = torch.ones_like(x[:, :, :1], dtype=torch.bool) if padding_mask is None else ~padding_mask[:, :, None]
    num_valid = valid.sum(dim=1)
    mean = x.masked_fill(~valid, 0.0).sum(dim=1) / num_valid
    if pooling == "mean":
        return mean

    variance = (x - mean[:, None]).masked_fill(~valid, 0.0).square().sum(dim=1) / num_valid

    return torch.cat([mean, variance.sqrt()], dim=-1)


def compute_moments(x: Tensor) -> Tensor:
    """What pooling needs of a part of a sample's tokens: (S, D) -> (3, D) float64, on the CPU.

    :returns: the number of tokens, their sum and the sum of their squares. Those of several parts can be added.
    """
    x = x.cpu().to(torch.float64)
    return torch.stack([torch.full_like(x[0], len(x)), x.sum(dim=0), x.square().sum(dim=0)])


def pool_moments(moments: Tensor, pooling: Pooling) -> Tensor:
    """Pool the tokens of a sample as :func:`pool_tokens` does: (3, D) -> (D,) float32, or (2·D,) with ``statistics``."""
    count, total, squares = moments
    mean = total / count
    if pooling == "statistics":
        mean = torch.cat([mean, (squares / count - mean.square()).clamp(min=0.0).sqrt()])

    return mean.to(torch.float32)


def split_samples(x: Tensor, padding_mask: Tensor | None) -> Sequence[Tensor]:
    """The valid tokens of each sample: (N, S, D) -> N × (S_n, D); padding is at the end."""
    if padding_mask is None:
        return x.unbind(0)
    lengths = (~padding_mask).sum(dim=1).tolist()
    return [row[:length] for row, length in zip(x, lengths, strict=True)]


def _class_token(features: Features, layer: int) -> Tensor:
    """(N, D)"""
    if features.extra_layers is None:
        return features.layers[layer][:, 0]
    return features.extra_layers[layer][:, -1]
