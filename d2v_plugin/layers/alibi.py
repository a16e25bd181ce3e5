"""Symmetric attention biases by distance (ALiBi) with a learned scale, on the positions of the kept tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from fairseq2.device import Device
from torch import Tensor

from d2v_plugin.layers.precision import compute_dtype


def alibi_slopes(num_heads: int, device: Device | None = None) -> Tensor:
    """The slope of each head (H): a geometric series for powers of two, interpolated otherwise (ALiBi, section 3)."""
    power = 1 << (num_heads.bit_length() - 1)
    series = torch.arange(1, power + 1, device=device) * (8 / power)
    between = torch.arange(num_heads - power, device=device) * (8 / power) + 4 / power

    return torch.exp2(-torch.cat([series, between]))


def token_distances(positions: Tensor, grid_width: int | None, metric: str) -> Tensor:
    """Pairwise distances of tokens.

    :param positions: (R, K) index of each token in the full sequence, row-major for images.
    :param grid_width: width of the grid of patches; None for sequences.
    :param metric: of patches: ``manhattan``, ``euclidean``, or ``sequential`` as if they were a sequence.
    :returns: (R, K, K) fp32.
    """
    points = token_coordinates(positions, grid_width, metric)
    if points.size(-1) == 1:
        return (points - points.mT).abs_()

    # The matrix product that cdist may use instead loses the exactness of small integers.
    return torch.cdist(points, points, p=1.0 if metric == "manhattan" else 2.0, compute_mode="donot_use_mm_for_euclid_dist")


def token_coordinates(positions: Tensor, grid_width: int | None, metric: str) -> Tensor:
    """Where tokens lie: (R, K) -> (R, K, 1) in a sequence, (R, K, 2) in a grid; parameters as for :func:`token_distances`."""
    if grid_width is None or metric == "sequential":
        # Whole numbers, exact in fp32 as well, at half the memory.
        return positions.float().unsqueeze(-1)
    return torch.stack([positions // grid_width, positions % grid_width], dim=-1).float()


def attention_biases(
    distances: Tensor, scale: Tensor, *, num_heads: int, num_extra_tokens: int, num_biased_heads: int | None = None
) -> list[Tensor]:
    """The biases of attention; extra tokens are at distance 0 from everything.

    :param distances: (R, K, K)
    :param scale: (1 or L, 1, B or 1, 1, 1); negative values act as 0.
    :param num_biased_heads: B, how many heads have a bias, the first ones; None = all.
    :returns: one for each scale, (R, H, X + K, X + K).
    """
    if num_extra_tokens > 0:
        distances = F.pad(distances, (num_extra_tokens, 0, num_extra_tokens, 0))

    # (L, 1, H, 1, 1) x (R, 1, K, K) -> L x (R, H, K, K)
    return [weights * distances.unsqueeze(1) for weights in distance_weights(scale, num_heads, num_biased_heads)]


def align_bias(bias: Tensor) -> Tensor:
    """Make of a bias, for all layers that share it, what PyTorch's kernels on a GPU would make of it in every layer.

    That is a copy in the dtype of the products, with rows whose place in memory is a multiple of 8 elements. On a CPU nothing
    changes: attention there reads fp32.

    :param bias: (..., K, K)
    :returns: the same shape.
    """
    if bias.device.type == "cpu":
        return bias
    length = bias.size(-1)
    bias = bias.to(compute_dtype(bias))

    return bias if length % 8 == 0 else F.pad(bias, (0, -length % 8))[..., :length]


def distance_weights(scale: Tensor, num_heads: int, num_biased_heads: int | None = None) -> Tensor:
    """The factors of distances in the heads, (..., H, 1, 1); parameters as for :func:`attention_biases`."""
    num_biased_heads = num_heads if num_biased_heads is None else num_biased_heads
    # The heads behind have the slope 0.
    slopes = F.pad(alibi_slopes(num_biased_heads, scale.device), (0, num_heads - num_biased_heads)).view(-1, 1, 1)
    if 1 < scale.size(-3) < num_heads:
        scale = F.pad(scale, (0, 0, 0, 0, 0, num_heads - num_biased_heads))

    return -slopes * scale.clamp_min(0.0)


class DistanceBias:
    """The bias of attention over a long sequence, made for a few queries at a time where all of it would not fit into memory."""

    def __init__(self, positions: Tensor, weights: Tensor, *, num_extra_tokens: int, padding_mask: Tensor | None) -> None:
        """
        :param positions: (R, K) index of each token in the full sequence.
        :param weights: (1, H, 1, 1) from :func:`distance_weights`.
        :param padding_mask: (R, 1, 1, X + K), True = padding; None = nothing is padded.
        """
        self._positions = positions.float()
        self._weights = weights
        self._num_extra = num_extra_tokens
        self._padding_mask = padding_mask

    def of_queries(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """The rows of the whole bias for queries [start, stop), extra tokens first: (R, H, stop - start, X + K)."""
        extra, positions = self._num_extra, self._positions
        queries = positions[:, max(0, start - extra) : max(0, stop - extra)]
        distances = (queries.unsqueeze(-1) - positions.unsqueeze(-2)).abs_()
        if extra > 0:
            distances = F.pad(distances, (extra, 0, max(0, min(stop, extra) - start), 0))
        bias = (self._weights * distances.unsqueeze(1)).to(dtype)

        return bias if self._padding_mask is None else bias.masked_fill(self._padding_mask, -torch.inf)
