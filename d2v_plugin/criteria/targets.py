"""Targets: the teacher's layers, each normalised, the top ones averaged, normalised again (data2vec, section 3.3); and pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from d2v_plugin.core.batch import Grid
from d2v_plugin.core.ranges import PositiveInt
from d2v_plugin.core.validation import Checked
from d2v_plugin.models.statistics import mean_valid

_USUAL_LAYERS: Final = 8


@dataclass(kw_only=True)
class TargetConfig(Checked):
    """Recipe of the targets. Norms have no parameters and apply in the order of the fields."""

    num_layers: PositiveInt | None = None
    """K: how many of the teacher's top blocks are averaged; None = 8, or all blocks of a model that has fewer."""

    end_of_block: bool = False
    """Average the outputs of the blocks instead of their feed-forward outputs."""

    batch_norm_layers: bool = False
    """Normalise each channel of each layer over all tokens of the batch."""

    instance_norm_layers: bool = True
    """Normalise each channel of each layer over the tokens of the sample."""

    group_norm_layers: bool = False
    """Normalise each layer over the tokens of the sample and their channels together; only conversions of foreign checkpoints
    set it."""

    layer_norm_layers: bool = False
    """Normalise each token of each layer over its channels."""

    separate_layers: bool = False
    """Keep the layers apart instead of averaging them: each is predicted with a projection of its own, and they count equally.
    What follows the average is done to each."""

    layer_norm: bool = False
    """Normalise each token of the average over its channels."""

    instance_norm: bool = False
    """Normalise each channel of the average over the tokens of the sample."""

    original_axes: bool = False
    """Take ``group_norm_layers`` and ``instance_norm`` over the samples of the batch, at each position, instead of over the
    tokens of the sample: what fairseq's data2vec 1.0 for speech does by mistake where neither ``batch_norm_layers`` nor
    ``instance_norm_layers`` is set. Only conversions of foreign checkpoints set it."""

    @property
    def mean_is_zero(self) -> bool:
        """Whether the mean of a sample's targets is zero, whatever the sample: then it says nothing of it."""
        normalized = self.instance_norm_layers and not (self.layer_norm_layers or self.layer_norm)
        return normalized or (self.instance_norm and not self.original_axes)

    def count_layers(self, depth: int) -> int:
        """K for a model of ``depth`` blocks."""
        return min(_USUAL_LAYERS, depth) if self.num_layers is None else self.num_layers


def add_layer(config: TargetConfig, total: Tensor | None, layer: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Normalise a layer and add it to the sum of those before: (N, S, D) fp32.

    :param total: None = it is the first.
    """
    layer = layer.float()
    if config.batch_norm_layers:
        whole_padding = None if padding_mask is None else padding_mask.reshape(1, -1)
        layer = _normalize_tokens(layer.flatten(0, 1).unsqueeze(0), whole_padding).view_as(layer)
    if config.instance_norm_layers:
        layer = _normalize_tokens(layer, padding_mask)
    if config.group_norm_layers:
        layer = _normalize_samples(layer, padding_mask, config.original_axes, whole=True)
    if config.layer_norm_layers:
        layer = F.layer_norm(layer, layer.shape[-1:])

    return layer if total is None else total + layer


def make_targets(
    config: TargetConfig,
    layers: Iterable[Tensor],
    padding_mask: Tensor | None = None,
    *,
    add: Callable[[TargetConfig, Tensor | None, Tensor, Tensor | None], Tensor] = add_layer,
) -> Tensor:
    """Average K layers; they are summed as they come, never kept together, unless they stay apart.

    :param layers: the top K layers, each (N, S, D).
    :param padding_mask: (N, S): positions that no statistic may include.
    :param add: :func:`add_layer`, or the same compiled.
    :returns: (N, S, D) fp32; with ``separate_layers`` (N, S, K·D), layer by layer.
    """
    kept: list[Tensor] = []
    total: Tensor | None = None
    num_layers = 0
    for layer in layers:
        if config.separate_layers:
            kept.append(_normalize_targets(config, add(config, None, layer, padding_mask), padding_mask))
            continue
        total = add(config, total, layer, padding_mask)
        num_layers += 1
    if kept:
        return torch.cat(kept, dim=-1)
    if total is None:
        raise ValueError("`layers` must not be empty.")

    return _normalize_targets(config, total / num_layers, padding_mask)


def _normalize_targets(config: TargetConfig, targets: Tensor, padding_mask: Tensor | None) -> Tensor:
    if config.layer_norm:
        targets = F.layer_norm(targets, targets.shape[-1:])
    if config.instance_norm:
        targets = _normalize_samples(targets, padding_mask, config.original_axes)

    return targets


def _normalize_samples(x: Tensor, padding_mask: Tensor | None, original_axes: bool, *, whole: bool = False) -> Tensor:
    """Normalise each channel, or all together, over the valid tokens of the sample: (N, S, D) -> (N, S, D).

    :param original_axes: over the samples of the position instead.
    :param whole: all channels together.
    """
    if original_axes:
        x = x.transpose(0, 1)
        if padding_mask is not None:
            # Where every sample is padded there is nothing to leave out, or the mean would be of none.
            padding_mask = padding_mask.T & ~padding_mask.all(dim=0).unsqueeze(-1)
    if whole:
        # (N, S, D) -> (N, S·D, 1)
        mask = None if padding_mask is None else padding_mask.repeat_interleave(x.size(-1), dim=1)
        normalized = _normalize_tokens(x.flatten(1).unsqueeze(-1), mask).view(x.shape)
    else:
        normalized = _normalize_tokens(x, padding_mask)

    return normalized.transpose(0, 1) if original_axes else normalized


def _normalize_tokens(x: Tensor, padding_mask: Tensor | None, eps: float = 1e-5) -> Tensor:
    """Zero mean and unit (biased) variance of each channel over the valid tokens: (N, S, D) -> (N, S, D)."""
    # Not by `var_mean`, which takes five times as long on a CPU where the last dimension stays.
    centered = x - mean_valid(x, padding_mask).unsqueeze(1)
    variance = mean_valid(centered.square(), padding_mask).unsqueeze(1)

    return centered * torch.rsqrt(variance + eps)


def normalize_patches(images: Tensor, patch: Grid) -> Tensor:
    """Cut images into patches and give the pixels of each zero mean and unit variance (MAE, section 3).

    :param images: (N, C, H, W)
    :param patch: (P, Q), height and width of a patch in pixels.
    :returns: (N, S, P·Q·C) fp32, patches row by row, the channels of a pixel adjacent.
    """
    (down, across), (height, width) = patch, images.shape[-2:]

    # (N, C, H, W) -> (N, C, H/P, P, W/Q, Q) -> (N, H/P, W/Q, P, Q, C)
    x = images.float().view(*images.shape[:2], height // down, down, width // across, across)
    x = x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    variance, mean = torch.var_mean(x, dim=-1, keepdim=True)

    return (x - mean) * torch.rsqrt(variance + 1e-6)
