"""Linear layers whose products oneDNN computes on a CPU, in fp32: a tenth to a quarter faster than what PyTorch calls there.

Skip this at first reading.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from typing_extensions import override

from d2v_plugin.layers.cpu import uses_own_kernels
from d2v_plugin.layers.precision import compute_dtype

LARGE: Final = 1 << 26
"""So many multiplications are worth it, about a millisecond of one core: oneDNN makes code for each shape that it meets."""


class Linear(nn.Linear):
    """As :class:`torch.nn.Linear`."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As :func:`torch.nn.functional.linear`.

    :param x: (..., C)
    :param weight: (E, C)
    """
    if torch.is_grad_enabled() and _wants_onednn(x, weight):
        return _Linear.apply(x, weight, bias)  # type: ignore[no-any-return, no-untyped-call]
    return multiply(x, weight, bias)


def linear_gelu(x: Tensor, layer: nn.Linear) -> Tensor:
    """``gelu(layer(x))``; where no gradient is asked for, in one pass: PyTorch's GELU takes a third as long as the product."""
    if torch.is_grad_enabled() or not _wants_onednn(x, layer.weight):
        return F.gelu(layer(x))
    return _run(x, layer.weight, layer.bias, "gelu")


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """:func:`linear` for functions that compute gradients by themselves."""
    return _run(x, weight, bias, "none") if _wants_onednn(x, weight) else F.linear(x, weight, bias)


def _wants_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        uses_own_kernels(x)
        and x.numel() * len(weight) >= LARGE
        and x.dtype == weight.dtype == compute_dtype(x) == torch.float32
        and torch.backends.mkldnn.is_available()
        and type(weight) in (Tensor, nn.Parameter)  # no shards
    )


def _run(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    # What `torch.compile` calls for such a layer.
    output: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "none")
    return output


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _run(x, weight, bias, "none")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, len(weight))
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad

        return (
            multiply(rows, weight.t()).view_as(x) if needs_x else None,
            rows.t() @ x.reshape(len(rows), -1) if needs_weight else None,
            rows.sum(dim=0) if needs_bias else None,
        )
