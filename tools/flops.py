"""FLOPs of whatever runs, counted by PyTorch: two for each multiplication with an addition in products and convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def count_flops(run: Callable[[], object]) -> float:
    """Call ``run`` and count its products of matrices, convolutions and attention, those of backward passes included."""
    aten = torch.ops.aten
    # PyTorch's own formulas count grouped convolutions as if they had one group and what attention computes again in its backward
    # pass, and know neither the attention of CPUs, nor oneDNN's linear layers, nor sums of products in place.
    mapping = {
        aten.convolution: _count_convolution,
        aten.convolution_backward: _count_convolution_backward,
        aten._scaled_dot_product_flash_attention_for_cpu: _count_attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _count_attention_backward,
        aten._scaled_dot_product_efficient_attention_backward: _count_attention_backward,
        torch.ops.mkldnn._linear_pointwise: lambda x, weight, *rest, **options: 2 * prod(x) * weight[0],
        aten.addmm_: lambda total, a, b, **options: 2 * a[0] * a[1] * b[1],
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        run()

    return float(counter.get_total_flops())


def _count_convolution(x: Sequence[int], weight: Sequence[int], *rest: Any, out_shape: Sequence[int], **options: Any) -> int:
    # The weight's second dimension is already that of a group.
    return 2 * prod(out_shape) * prod(weight[1:])


def _count_convolution_backward(
    gradient: Sequence[int], x: Sequence[int], weight: Sequence[int], *rest: Any, out_shape: Any, **options: Any
) -> int:
    wants_input, wants_weight = rest[-1][:2]

    return 2 * prod(gradient) * prod(weight[1:]) * (int(wants_input) + int(wants_weight))


def _count_attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *rest: Any, **options: Any) -> int:
    rows, heads, length, dim = query

    return 2 * rows * heads * length * key[2] * (dim + value[3])


def _count_attention_backward(gradient: Sequence[int], *inputs: Any, **options: Any) -> int:
    return 2 * _count_attention(*inputs)
