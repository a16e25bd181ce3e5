"""Attention: PyTorch's fused kernels, and for CPUs one of our own for what those lack or do slowly.

Read :func:`attend` only, at first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from d2v_plugin.layers.alibi import DistanceBias
from d2v_plugin.layers.cpu import uses_own_kernels
from d2v_plugin.layers.distance_scores import DistanceScores, attend_by_distance
from d2v_plugin.layers.dropout import PIECE_SIZE, DropoutFactors, draw_seed
from d2v_plugin.layers.packing import PackedBias

Bias = Tensor | DistanceBias | DistanceScores | PackedBias
"""What is added to the logits, if floating; the keys to attend to, if boolean; or an object that makes one of these."""

LONG: Final = 1 << 28
"""Weights of attention (R · H · K²) from which on they are not computed at once, if no gradient is asked for: 1 GiB in fp32."""

KERNELS_WITH_BIAS: Final = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""What computes attention with a bias on CUDA. cuDNN's, which some versions of PyTorch prefer on H100 and H200, raises where the
bias needs a gradient, and with a mask can return NaN for lengths of 64 more than a multiple of 128 (pytorch/pytorch#196678)."""


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Bias | None, dropout: float) -> Tensor:
    """Scaled dot-product attention.

    :param q, k, v: (R, H, K, E)
    :param bias: added to the logits if floating, selects the keys to attend to if boolean; broadcasts to (R, H, K, K).
    :param dropout: rate for the attention weights; 0 outside of training.
    :returns: (R, H, K, E)
    """
    if isinstance(bias, DistanceScores):
        return attend_by_distance(q, k, v, bias)
    if isinstance(bias, PackedBias):
        return bias.attend(attend, q, k, v, dropout)

    no_gradient = not torch.is_grad_enabled() or not q.requires_grad
    if isinstance(bias, DistanceBias) or (is_long(q.shape) and dropout == 0.0 and no_gradient):
        return _attend_by_queries(q, k, v, bias)

    needs_more = dropout > 0.0 or (bias is not None and bias.requires_grad) or q.dtype == torch.bfloat16
    if needs_more and uses_own_kernels(q):
        if bias is not None:
            bias = bias[(None,) * (4 - bias.dim())]
        seed = draw_seed() if dropout > 0.0 else None
        with torch.autocast("cpu", enabled=False):  # both passes choose their own dtypes
            return _PiecewiseAttention.apply(q, k, v, bias, dropout, seed)  # type: ignore[no-any-return, no-untyped-call]

    if bias is not None and bias.is_floating_point():
        bias = bias.to(q.dtype)
    if bias is not None and q.device.type == "cuda":
        with sdpa_kernel(KERNELS_WITH_BIAS):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)

    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)


def is_long(shape: Sequence[int]) -> bool:
    """Whether attention of this shape, (R, H, K, …), has too many weights to compute them at once."""
    if torch.compiler.is_exporting():
        # An exported program does the same for every shape.
        return False
    rows, heads, length = shape[:3]
    return rows * heads * length**2 > LONG


def _attend_by_queries(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | DistanceBias | None) -> Tensor:
    """Attention of a few queries at a time to all keys: the same numbers; memory grows with the length, not its square."""
    rows, heads, length, _ = q.shape
    step = max(1, LONG // 8 // (rows * heads * length))
    output = torch.empty_like(q)
    for start in range(0, length, step):
        stop = min(start + step, length)
        if isinstance(bias, DistanceBias):
            part: Tensor | None = bias.of_queries(start, stop, q.dtype)
        else:
            part = bias if bias is None or bias.size(-2) == 1 else bias[..., start:stop, :]
            if part is not None and part.is_floating_point():
                part = part.to(q.dtype)
        output[:, :, start:stop] = F.scaled_dot_product_attention(q[:, :, start:stop], k, v, attn_mask=part)

    return output


class _PiecewiseAttention(torch.autograd.Function):
    """Attention on a CPU where the fused kernel has no dropout and no differentiable bias, or is slow: in bf16.

    A few rows, or heads of a long row, at a time, so that the weights stay in the caches; they are computed again in the
    backward pass. The fallback of PyTorch keeps five matrices of all rows instead and took 2.2 times as long (audio base).
    In bf16 the fused kernel takes 1.2 (197 tokens) to 3 times (40 tokens) as long, both passes.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float, seed: Tensor | None) -> Tensor:
        ctx.dropout = dropout
        ctx.save_for_backward(q, k, v, bias, seed)
        rows, heads, length, dim = q.shape
        # Contiguous when the heads are put together again.
        output = q.new_empty(rows, length, heads, dim).transpose(1, 2)
        weigh = _Weights(q, k, bias, dropout, seed)
        for i, piece in enumerate(weigh.pieces):
            weights, factors = weigh(i)
            if factors is not None:
                weights.mul_(factors)
            output[piece] = torch.matmul(weights.to(v.dtype), v[piece])

        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, seed = ctx.saved_tensors
        rows, heads, length, dim = q.shape
        # Laid out as the output of the projection that q, k and v are parts of.
        grad_qkv = q.new_empty(rows, length, 3, heads, dim).permute(2, 0, 3, 1, 4)
        grad_bias = None
        if ctx.needs_input_grad[3]:
            grad_bias = torch.zeros_like(bias)
        weigh = _Weights(q, k, bias, ctx.dropout, seed)
        for i, piece in enumerate(weigh.pieces):
            weights, factors = weigh(i)
            # Used twice: a product of several rows copies what is not contiguous.
            grads = grad[piece].contiguous() if len(grad[piece]) > 1 else grad[piece]
            grad_weights = torch.matmul(grads, v[piece].transpose(-1, -2)).float()
            if factors is None:
                dropped = weights
            else:
                dropped = weights * factors
                grad_weights.mul_(factors)
            grad_qkv[2][piece] = torch.matmul(dropped.to(grad.dtype).transpose(-1, -2), grads)
            grad_logits = torch._softmax_backward_data(grad_weights, weights, -1, torch.float32)
            if grad_bias is not None:
                part = _part(grad_bias, piece)
                part += grad_logits.sum_to_size(part.shape)
            grad_logits = grad_logits.mul_(weigh.scale).to(q.dtype)
            grad_qkv[0][piece] = torch.matmul(grad_logits, k[piece])
            grad_qkv[1][piece] = torch.matmul(grad_logits.transpose(-1, -2), q[piece])

        return *grad_qkv.unbind(0), grad_bias, None, None


class _Weights:
    """Computes attention weights before dropout, and its factors, for a few rows or heads at a time."""

    def __init__(self, q: Tensor, k: Tensor, bias: Tensor | None, dropout: float, seed: Tensor | None) -> None:
        rows, heads, length, dim = q.shape
        rows_per_piece = max(1, min(rows, PIECE_SIZE // (heads * length**2)))
        heads_per_piece = math.ceil(heads / max(1, heads * length**2 // PIECE_SIZE))
        self.scale = dim**-0.5
        self.pieces = list(product(_cut(rows, rows_per_piece), _cut(heads, heads_per_piece)))
        self._q, self._k, self._bias = q, k, bias
        self._factors = None
        if seed is not None:
            self._factors = DropoutFactors(seed, dropout, len(self.pieces), rows_per_piece * heads_per_piece * length**2)

    def __call__(self, i: int) -> tuple[Tensor, Tensor | None]:
        piece = self.pieces[i]
        q, k = self._q[piece], self._k[piece]
        if self._factors is None:
            # Logits in fp32, as in the fused kernel. Under dropout they are rounded, which saves a sixth of the time in bf16.
            q, k = (x.to(torch.float32, memory_format=torch.contiguous_format) for x in (q, k))
        logits = torch.matmul(q, k.transpose(-1, -2)).float().mul_(self.scale)
        if self._bias is not None:
            bias = _part(self._bias, piece)
            logits = logits.add_(bias) if bias.is_floating_point() else logits.masked_fill_(~bias, -torch.inf)
        weights = torch.softmax(logits, dim=-1, out=logits)
        if self._bias is not None:
            # A query that may attend to nothing, as in a sample of padding only, gets zeros, as in the fused kernel.
            first = _part(self._bias, piece)[..., :1]
            is_closed = (first.isneginf() if first.is_floating_point() else ~first) & weights[..., :1].isnan()
            if is_closed.any().numpy():  # on a CPU nothing waits for it, so that it does not count as a wait
                weights.masked_fill_(is_closed, 0.0)
        # Far tokens get weights that have no normal representation, with which a matrix product takes five times as long.
        weights = F.threshold(weights, 1e-30, 0.0, inplace=True)
        factors = None if self._factors is None else self._factors.draw(i, weights.numel()).view_as(weights)

        return weights, factors


def _cut(length: int, step: int) -> list[slice]:
    return [slice(i, i + step) for i in range(0, length, step)]


def _part(bias: Tensor, piece: tuple[slice, slice]) -> Tensor:
    """The part of a bias that a piece needs; it may be the same for all rows or heads."""
    rows, heads = piece
    return bias[rows if bias.size(0) > 1 else slice(None), heads if bias.size(1) > 1 else slice(None)]
