"""Norm, two linear layers with GELU between them; on a CPU only the input and the output of the first layer are kept.

What is special about it can be skipped at first reading.
"""

from __future__ import annotations

import math
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from d2v_plugin.layers.cpu import recomputes
from d2v_plugin.layers.dropout import Dropout
from d2v_plugin.layers.linear import PIECE_SIZE, Linear, linear_gelu, multiply
from d2v_plugin.layers.precision import compute_dtype

PIECE_BYTES: Final = 12 * 2**20
"""Hidden features in fp32 that are worked on at a time, 1024 tokens of a base model: temporaries stay small."""


class FeedForward(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(R, K, D) -> (R, K, D)"""
        return self.dropout(self.fc2(self.dropout(linear_gelu(x, self.fc1))))  # type: ignore[no-any-return]


def build_projection(in_dim: int, hidden_dim: int, out_dim: int, *, num_layers: int) -> nn.Sequential:
    """Linear layers with GELU in between."""
    layers: list[nn.Module] = []
    for _ in range(num_layers - 1):
        layers += [nn.Linear(in_dim, hidden_dim), nn.GELU()]
        in_dim = hidden_dim
    return nn.Sequential(*layers, nn.Linear(in_dim, out_dim))


def norm_feed_forward(x: Tensor, norm: nn.LayerNorm, mlp: FeedForward) -> tuple[Tensor, Tensor]:
    """``norm(x)`` and ``mlp(norm(x))``, both (R, K, D).

    :param x: (R, K, D)
    """
    if mlp.dropout.p == 0.0:
        return norm_two_layers(x, norm, mlp.fc1, mlp.fc2, mlp.dropout)
    x = norm(x)
    return x, mlp(x)


def norm_two_layers(x: Tensor, norm: nn.LayerNorm, fc1: nn.Linear, fc2: nn.Linear, dropout: Dropout) -> tuple[Tensor, Tensor]:
    """``norm(x)`` and ``fc2(dropout(gelu(fc1(norm(x)))))``, both (R, K, D).

    :param x: (R, K, D)
    """
    if not recomputes(x) or dropout.p > 0.0:
        x = norm(x)
        return x, fc2(dropout(linear_gelu(x, fc1)))
    return _NormFeedForward.apply(  # type: ignore[no-any-return, no-untyped-call]
        x, norm.weight, norm.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias, norm.eps, compute_dtype(x)
    )


class _NormFeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
        eps: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        x = x.contiguous()
        normed, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
        hidden = multiply(normed.to(dtype), weight1.to(dtype), bias1.to(dtype)).flatten(0, -2)
        ctx.eps = eps
        ctx.save_for_backward(x, mean, rstd, norm_weight, norm_bias, hidden, weight1, weight2)

        output = hidden.new_empty(len(hidden), len(weight2))
        weight2, bias2 = weight2.to(dtype), bias2.to(dtype)
        num_rows = _rows_per_piece(hidden)
        for piece, outputs in zip(hidden.split(num_rows), output.split(num_rows), strict=True):
            outputs.copy_(multiply(F.gelu(piece), weight2, bias2))

        return normed, output.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_normed: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, norm_weight, norm_bias, hidden, weight1, weight2 = ctx.saved_tensors
        dim, dtype = x.shape[-1:], hidden.dtype
        linear1, linear2 = weight1.to(dtype), weight2.to(dtype)
        grad_weight1, grad_weight2, grad_bias1 = None, None, weight1.new_zeros(len(weight1))
        grad_x = torch.empty_like(x).view(-1, *dim)

        # Piece by piece: the hidden features' gradients never exist as a whole.
        grads = grad.reshape(-1, *dim)
        num_rows = _rows_per_piece(hidden)
        pieces = [part.split(num_rows) for part in (x.view(-1, *dim), grads, hidden, grad_x)]
        for inputs, outputs, hidden_piece, grad_inputs in zip(*pieces, strict=True):
            grad_weight2 = _add_product(grad_weight2, outputs.t(), F.gelu(hidden_piece))
            grad_hidden = torch.ops.aten.gelu_backward(multiply(outputs, linear2.t()), hidden_piece)
            normed = torch.native_layer_norm(inputs, dim, norm_weight, norm_bias, ctx.eps)[0]
            grad_weight1 = _add_product(grad_weight1, grad_hidden.t(), normed.to(dtype))
            grad_bias1 += grad_hidden.sum(dim=0)
            grad_inputs.copy_(multiply(grad_hidden, linear1.t()))
        grad_x = grad_x.view_as(x).add_(grad_normed)

        has_weight = norm_weight is not None
        grad_x, grad_norm_weight, grad_norm_bias = torch.ops.aten.native_layer_norm_backward(
            grad_x, x, dim, mean, rstd, norm_weight, norm_bias, [True, has_weight, has_weight]
        )

        return (
            grad_x, grad_norm_weight, grad_norm_bias, grad_weight1, grad_bias1, grad_weight2, grads.sum(dim=0), None, None
        )  # fmt: skip


def _rows_per_piece(hidden: Tensor) -> int:
    if hidden.dtype is torch.bfloat16:  # what oneDNN takes at once, in equal parts
        return math.ceil(len(hidden) / math.ceil(hidden.numel() / PIECE_SIZE))
    return max(1, PIECE_BYTES // (hidden.size(1) * hidden.element_size()))


def _add_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """``total + a @ b`` in place; sums are in fp32 whatever the dtype of the products."""
    if total is not None and total.dtype == a.dtype:
        return total.addmm_(a, b)
    # oneDNN's is a twelfth faster where the result is wide, in bf16.
    product = multiply(a, b.t()) if a.dtype is torch.bfloat16 and len(a) < b.size(1) else a @ b
    return product.float() if total is None else total.add_(product)
