"""Linear layers whose products oneDNN computes on a CPU, bias included: 5 to 25 % faster than what PyTorch calls there.

Skip this at first reading.
"""

from __future__ import annotations

import math
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

PIECE_SIZE: Final = 1 << 22
"""Outputs of one product in bf16, with sums in fp32 of 16 MiB; from 20 MiB on (training/malloc.py) these would be fresh pages,
which take a quarter of the time."""


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
        return _Linear.apply(x, weight, bias, compute_dtype(x))  # type: ignore[no-any-return, no-untyped-call]
    return multiply(x, weight, bias)


def linear_gelu(x: Tensor, layer: nn.Linear) -> Tensor:
    """``gelu(layer(x))``, in one pass where no gradient is asked for."""
    if torch.is_grad_enabled() or not _wants_onednn(x, layer.weight):
        return F.gelu(layer(x))
    return _run(x, layer.weight, layer.bias, compute_dtype(x), "gelu")


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """:func:`linear` for functions that compute gradients by themselves."""
    return _run(x, weight, bias, compute_dtype(x)) if _wants_onednn(x, weight) else F.linear(x, weight, bias)


def _wants_onednn(x: Tensor, weight: Tensor) -> bool:
    if not uses_own_kernels(x) or x.numel() * len(weight) < LARGE:
        return False
    dtype, found = compute_dtype(x), {x.dtype, weight.dtype}
    return (
        # Autocast takes fp32 and its own dtype.
        (found == {dtype} or (torch.is_autocast_enabled("cpu") and found <= {dtype, torch.float32}))
        and (dtype is torch.float32 or (dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()))
        and torch.backends.mkldnn.is_available()
        and type(weight) in (Tensor, nn.Parameter)  # no shards
    )


def _run(x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, activation: str = "none") -> Tensor:
    x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    num_pieces = math.ceil(x[..., 0].numel() * len(weight) / PIECE_SIZE)
    if dtype is torch.float32 or num_pieces == 1:
        return _compute(x, weight, bias, activation)
    output = x.new_empty(*x.shape[:-1], len(weight))
    for part, piece in zip(output.flatten(0, -2).chunk(num_pieces), x.flatten(0, -2).chunk(num_pieces), strict=True):
        part.copy_(_compute(piece, weight, bias, activation))

    return output


def _compute(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    # What `torch.compile` calls for such a layer.
    output: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "none")
    return output


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        ctx.dtypes = x.dtype, weight.dtype
        x, weight = x.to(dtype), weight.to(dtype)
        ctx.save_for_backward(x, weight)
        return _run(x, weight, bias, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        x_dtype, weight_dtype = ctx.dtypes
        rows = grad.reshape(-1, len(weight))
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad

        return (
            multiply(rows, weight.t()).view_as(x).to(x_dtype) if needs_x else None,
            (rows.t() @ x.reshape(len(rows), -1)).to(weight_dtype) if needs_weight else None,
            rows.sum(dim=0, dtype=weight_dtype) if needs_bias else None,
            None,
        )
