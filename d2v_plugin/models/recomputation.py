"""What eager training computes twice rather than keep: cheap functions of something that is kept anyway.

On a CPU the memory matters more than the time, on which it has no measurable effect. Elsewhere PyTorch's own functions run;
compiled code decides by itself what to compute again.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def _recomputes(x: Tensor) -> bool:
    return x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling()


def gelu_linear(x: Tensor, linear: nn.Linear) -> Tensor:
    """``linear(gelu(x))``, which keeps ``x`` only."""
    if not _recomputes(x):
        return linear(F.gelu(x))  # type: ignore[no-any-return]

    # Autocast does not reach into a function of our own; `x` has the dtype that it chose.
    return _GeluLinear.apply(x, linear.weight.to(x.dtype), linear.bias.to(x.dtype))  # type: ignore[no-any-return, no-untyped-call]


def norm_gelu(x: Tensor) -> Tensor:
    """``gelu(layer_norm(x))`` over the channels, without parameters, which keeps ``x`` only."""
    if not _recomputes(x):
        return F.gelu(F.layer_norm(x, x.shape[-1:]))

    return _NormGelu.apply(x)  # type: ignore[no-any-return, no-untyped-call]


class _GeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)

        return F.linear(F.gelu(x), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        grad = grad.reshape(-1, grad.size(-1))
        grad_weight = grad.t() @ F.gelu(x).view(-1, x.size(-1))
        grad_x = (grad @ weight).view_as(x)

        return torch.ops.aten.gelu_backward(grad_x, x), grad_weight, grad.sum(dim=0)


class _NormGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        normed, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], None, None, 1e-5)
        ctx.save_for_backward(x, mean, rstd)

        return F.gelu(normed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, mean, rstd = ctx.saved_tensors
        normed = torch.native_layer_norm(x, x.shape[-1:], None, None, 1e-5)[0]
        grad = torch.ops.aten.gelu_backward(grad, normed)
        grad_x, _, _ = torch.ops.aten.native_layer_norm_backward(
            grad, x, x.shape[-1:], mean, rstd, None, None, [True, False, False]
        )

        return grad_x  # type: ignore[no-any-return]
