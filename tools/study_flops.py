"""FLOPs of one update of any recipe, counted while it runs."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from d2v_plugin.cli.main import main


def count_update_gflops(recipe: Path) -> float:
    """Run one update: forward and backward pass of student and teacher; two FLOPs per multiplication with an addition."""
    aten = torch.ops.aten
    # PyTorch's own formulas count grouped convolutions as if they had one group, and do not know the attention of CPUs.
    mapping = {
        aten.convolution: _count_convolution,
        aten.convolution_backward: _count_convolution_backward,
        aten._scaled_dot_product_flash_attention_for_cpu: _count_attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _count_attention_backward,
    }
    only_one_update = [
        "regime.num_steps=1",
        "regime.publish_metrics_every_n_steps=1",
        "regime.validate_every_n_steps=null",
        "regime.checkpoint_every_n_steps=1",
        "lr_scheduler.config.num_warmup_steps=0",
        "probing.probes=[]",
        "pictures.enabled=false",
    ]
    silence = redirect_stdout(io.StringIO())
    with silence, tempfile.TemporaryDirectory() as folder, FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        main(["recipe", "train", "--no-rich", "--config-file", str(recipe), folder, "--config", *only_one_update])

    return float(counter.get_total_flops()) / 1e9


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
