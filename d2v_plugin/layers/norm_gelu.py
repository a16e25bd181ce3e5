"""Layer norm and GELU, which on a CPU keep their input only; skip this at first reading."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from d2v_plugin.layers.cpu import recomputes


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
    return F.gelu(_normalize(x, weight, bias)[0])


def differentiate_norm_gelu(
    grad: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients of :func:`norm_gelu` for the same arguments."""
    normed, mean, rstd = _normalize(x, weight, bias)
    grad = torch.ops.aten.gelu_backward(grad, normed)
    has_weight = weight is not None
    gradients: tuple[Tensor, Tensor | None, Tensor | None] = torch.ops.aten.native_layer_norm_backward(
        grad, x, x.shape[-1:], mean, rstd, weight, bias, [True, has_weight, has_weight]
    )

    return gradients


def _normalize(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
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
