"""From the teacher's taps to targets: normalise each layer, average the top ones, normalise again (data2vec, section 3.3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from fairseq2.recipe.error import RecipeError
from torch import Tensor

from d2v_plugin.models.statistics import mean_valid


@dataclass(kw_only=True)
class TargetConfig:
    """Recipe of the targets. Norms have no parameters and apply in the order of the fields."""

    num_layers: int = 8
    """K: how many of the teacher's top blocks are averaged."""

    end_of_block: bool = False
    """Average the outputs of the blocks instead of their feed-forward outputs."""

    batch_norm_layers: bool = False
    """Normalise each channel of each layer over all tokens of the batch."""

    instance_norm_layers: bool = True
    """Normalise each channel of each layer over the tokens of the sample."""

    layer_norm_layers: bool = False
    """Normalise each token of each layer over its channels."""

    layer_norm: bool = False
    """Normalise each token of the average over its channels."""

    instance_norm: bool = False
    """Normalise each channel of the average over the tokens of the sample."""


def check_depth(config: TargetConfig, depth: int) -> None:
    """
    :raises RecipeError: the model has too few blocks.
    """
    if not 1 <= config.num_layers <= depth:
        raise RecipeError(f"`targets.num_layers` must be between 1 and the model's depth ({depth}), but is {config.num_layers}.")


def top_layers(config: TargetConfig, layers: Iterable[Tensor], depth: int) -> Iterator[Tensor]:
    """The last K of so many layers, as they come."""
    return islice(layers, depth - config.num_layers, None)


def make_targets(config: TargetConfig, layers: Iterable[Tensor], padding_mask: Tensor | None = None) -> Tensor:
    """Average K layers; they are summed as they come, never kept together.

    :param layers: the top K layers, each (N, S, D).
    :param padding_mask: (N, S): positions that no statistic may include.
    :returns: (N, S, D) fp32
    """
    total: Tensor | None = None
    num_layers = 0
    for layer in layers:
        layer = layer.float()
        if config.batch_norm_layers:
            whole_padding = None if padding_mask is None else padding_mask.reshape(1, -1)
            layer = _normalize_tokens(layer.flatten(0, 1).unsqueeze(0), whole_padding).view_as(layer)
        if config.instance_norm_layers:
            layer = _normalize_tokens(layer, padding_mask)
        if config.layer_norm_layers:
            layer = F.layer_norm(layer, layer.shape[-1:])
        total = layer if total is None else total + layer
        num_layers += 1
    if total is None:
        raise ValueError("`layers` must not be empty.")

    targets = total / num_layers
    if config.layer_norm:
        targets = F.layer_norm(targets, targets.shape[-1:])
    if config.instance_norm:
        targets = _normalize_tokens(targets, padding_mask)

    return targets


def _normalize_tokens(x: Tensor, padding_mask: Tensor | None, eps: float = 1e-5) -> Tensor:
    """Zero mean and unit (biased) variance of each channel over the valid tokens: (N, S, D) -> (N, S, D)."""
    if padding_mask is None:
        variance, mean = torch.var_mean(x, dim=1, keepdim=True, correction=0)
    else:
        mean = mean_valid(x, padding_mask).unsqueeze(1)
        variance = mean_valid((x - mean).square(), padding_mask).unsqueeze(1)

    return (x - mean) * torch.rsqrt(variance + eps)
