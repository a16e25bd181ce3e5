"""What eager training computes twice rather than keep: cheap functions of something that is kept anyway.

On a CPU the memory matters more than the time, on which it has no measurable effect. Elsewhere PyTorch's own functions run;
compiled code decides by itself what to compute again.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

PIECE_BYTES: Final = 12 * 2**20
"""Hidden features that are worked on at a time, 1024 tokens of a base model in fp32: temporaries stay small."""


def recomputes(x: Tensor) -> bool:
    """Whether functions of ``x`` are to be computed again in the backward pass."""
    return x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling()


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype of matrix products with ``x``: autocast does not reach into functions of our own."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def norm_feed_forward(x: Tensor, norm: nn.LayerNorm, fc1: nn.Linear, fc2: nn.Linear) -> tuple[Tensor, Tensor]:
    """``norm(x)`` and ``fc2(gelu(fc1(norm(x))))``, which keep ``x`` and the output of ``fc1`` only.

    :param x: (R, K, D)
    :returns: both (R, K, D).
    """
    if not recomputes(x):
        x = norm(x)
        return x, fc2(F.gelu(fc1(x)))

    return _NormFeedForward.apply(  # type: ignore[no-any-return, no-untyped-call]
        x, norm.weight, norm.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias, norm.eps, compute_dtype(x)
    )


def norm_gelu(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """``gelu(layer_norm(x))`` over the channels, which keeps ``x`` only.

    :param x: (..., C)
    :param weight, bias: (C); with them the norm is computed in fp32 also where autocast chose another dtype for ``x``.
    """
    if not recomputes(x):
        if weight is None or bias is None:
            return F.gelu(F.layer_norm(x, x.shape[-1:]))
        return F.gelu(F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float()).type_as(x))

    return _NormGelu.apply(x, weight, bias)  # type: ignore[no-any-return, no-untyped-call]


def compute_norm_gelu(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """:func:`norm_gelu` on a CPU, for functions that compute it again."""
    return F.gelu(_normalise(x, weight, bias)[0])


def differentiate_norm_gelu(
    grad: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients of :func:`norm_gelu` for the same arguments."""
    normed, mean, rstd = _normalise(x, weight, bias)
    grad = torch.ops.aten.gelu_backward(grad, normed)
    has_weight = weight is not None
    gradients: tuple[Tensor, Tensor | None, Tensor | None] = torch.ops.aten.native_layer_norm_backward(
        grad, x, x.shape[-1:], mean, rstd, weight, bias, [True, has_weight, has_weight]
    )

    return gradients


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
        hidden = F.linear(normed.to(dtype), weight1.to(dtype), bias1.to(dtype)).flatten(0, -2)
        ctx.eps = eps
        ctx.save_for_backward(x, mean, rstd, norm_weight, norm_bias, hidden, weight1, weight2)

        output = hidden.new_empty(len(hidden), len(weight2))
        weight2, bias2 = weight2.t().to(dtype), bias2.to(dtype)
        num_rows = _rows_per_piece(hidden)
        for piece, outputs in zip(hidden.split(num_rows), output.split(num_rows), strict=True):
            torch.addmm(bias2, F.gelu(piece), weight2, out=outputs)

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
            grad_hidden = torch.ops.aten.gelu_backward(outputs @ linear2, hidden_piece)
            normed = torch.native_layer_norm(inputs, dim, norm_weight, norm_bias, ctx.eps)[0]
            grad_weight1 = _add_product(grad_weight1, grad_hidden.t(), normed.to(dtype))
            grad_bias1 += grad_hidden.sum(dim=0)
            grad_inputs.copy_(grad_hidden @ linear1)
        grad_x = grad_x.view_as(x).add_(grad_normed)

        has_weight = norm_weight is not None
        grad_x, grad_norm_weight, grad_norm_bias = torch.ops.aten.native_layer_norm_backward(
            grad_x, x, dim, mean, rstd, norm_weight, norm_bias, [True, has_weight, has_weight]
        )

        return (
            grad_x, grad_norm_weight, grad_norm_bias, grad_weight1, grad_bias1, grad_weight2, grads.sum(dim=0), None, None
        )  # fmt: skip


def _rows_per_piece(hidden: Tensor) -> int:
    return max(1, PIECE_BYTES // (hidden.size(1) * hidden.element_size()))


def _add_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """``total + a @ b`` in place; sums are in fp32 whatever the dtype of the products."""
    if total is None:
        return (a @ b).float()
    if total.dtype == a.dtype:
        return total.addmm_(a, b)

    return total.add_(a @ b)


def _normalise(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    normed: tuple[Tensor, Tensor, Tensor] = torch.native_layer_norm(x, x.shape[-1:], weight, bias, 1e-5)

    return normed


class _NormGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, bias)

        return compute_norm_gelu(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return differentiate_norm_gelu(grad, *ctx.saved_tensors)
