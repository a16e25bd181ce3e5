"""Attention of the base models: the kernel that PyTorch takes, the time of each; convolutions by layout and cuDNN's search."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from d2v_plugin.layers.attention import attend
from tools.gpu_check.driver import Options
from tools.gpu_check.steps import Findings, describe_error, gradients, time_call


@dataclass(frozen=True)
class Attention:
    """Attention of 12 heads of 64 in one place of a base model."""

    rows: int
    length: int
    bias: Literal["learned", "shared", "padding"] | None = None
    trains: bool = True
    dropout: float = 0.0


ATTENTIONS = {
    "image, student": Attention(4096, 40),
    "image, teacher": Attention(256, 197, trains=False),
    "audio, student": Attention(64, 391, "learned", dropout=0.1),
    "audio, teacher": Attention(8, 781, "shared", trains=False),
    "text, student": Attention(128, 266, dropout=0.1),
    "text, padded to 64 more than 128s": Attention(64, 448, "padding", dropout=0.1),
}
BACKENDS = (None, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH)


@dataclass(frozen=True)
class Convolution:
    """A convolution over (rows, channels, *grid), as wide as it is deep."""

    rows: int
    channels: int
    grid: tuple[int, int]
    kernel: tuple[int, int]
    groups: int = 1
    stride: tuple[int, int] = (1, 1)


CONVOLUTIONS = {
    "image, decoder": Convolution(1024, 768, (14, 14), (3, 3), 16),
    "audio, decoder": Convolution(64, 384, (1, 780), (1, 7), 16),
    "audio, positions": Convolution(64, 768, (1, 780), (1, 19), 16),
    "text, decoder": Convolution(128, 768, (1, 512), (1, 9)),
    "audio, second layer": Convolution(8, 512, (1, 50_000), (1, 3), stride=(1, 2)),
}


def check_kernels(options: Options, findings: Findings) -> None:
    for name, attention in ATTENTIONS.items():
        findings[f"attention: {name}"] = time_attention(attention, options)
    for name, convolution in CONVOLUTIONS.items():
        findings[f"convolution: {name}"] = time_convolution(convolution, options)
    for name in ATTENTIONS:
        assert not isinstance(findings[f"attention: {name}"]["ours"], str), f"{name}: our attention fails"


def time_attention(case: Attention, options: Options) -> dict[str, object]:
    """Forward and backward pass: milliseconds, or why not; `ours` is what models call."""
    rows, length = (max(1, case.rows // 64), case.length // 4) if options.tiny else (case.rows, case.length)
    draw = partial(torch.randn, device=options.device, dtype=torch.bfloat16)
    q, k, v = (draw(rows, 12, length, 64).requires_grad_(case.trains) for _ in range(3))
    bias: Tensor | None = None
    match case.bias:
        case "learned":
            bias = draw(rows, 12, length, length).requires_grad_()
        case "shared":
            bias = draw(1, 12, length, length)
        case "padding":
            bias = (torch.arange(length, device=options.device) < length * 3 // 4).expand(rows, 1, 1, length)
    wanted = [x for x in (q, k, v, *([bias] if bias is not None else [])) if x.requires_grad]

    def run(backend: SDPBackend | None, ours: bool) -> tuple[Tensor, ...]:
        with nullcontext() if backend is None else sdpa_kernel([backend]):
            if ours:
                output = attend(q, k, v, bias, case.dropout)
            else:
                output = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=case.dropout)
        return gradients(output, wanted) if wanted else (output,)

    times: dict[str, object] = {}
    for label, backend, ours in (("ours", None, True), *((name_backend(backend), backend, False) for backend in BACKENDS)):
        try:
            assert all(bool(x.isfinite().all()) for x in run(backend, ours)), "not finite"
            times[label] = 1e3 * time_call(partial(run, backend, ours), options)
        except (RuntimeError, AssertionError) as ex:
            times[label] = describe_error(ex)
    choice = torch._fused_sdp_choice(q, k, v, attn_mask=bias, dropout_p=case.dropout)

    return {"choice": name_backend(SDPBackend(choice)), **times}


def name_backend(backend: SDPBackend | None) -> str:
    return "PyTorch's choice" if backend is None else backend.name.removesuffix("_ATTENTION").lower()


def time_convolution(case: Convolution, options: Options) -> dict[str, object]:
    """Forward and backward pass: TFLOP/s by layout, with cuDNN's search and without, or why not."""
    rows, channels, grid = case.rows, case.channels, case.grid
    if options.tiny:
        rows, channels, grid = 1, channels // 8, (min(grid[0], 32), min(grid[1], 32))
    rates: dict[str, object] = {}
    for layout, searched in product((torch.contiguous_format, torch.channels_last), (False, True)):
        x = torch.randn(rows, channels, *grid, device=options.device, dtype=torch.bfloat16)
        weight = torch.randn(channels, channels // case.groups, *case.kernel, device=options.device, dtype=torch.bfloat16)
        x, weight = (t.to(memory_format=layout).requires_grad_() for t in (x, weight))
        padding = [side // 2 for side in case.kernel]

        def run(x: Tensor = x, weight: Tensor = weight, padding: list[int] = padding) -> Tensor:
            output = F.conv2d(x, weight, None, case.stride, padding, groups=case.groups)
            gradients(output, [x, weight])
            return output

        label = f"{'channels last' if layout is torch.channels_last else 'channels first'}{', searched' if searched else ''}"
        try:
            with torch.backends.cudnn.flags(enabled=True, benchmark=searched):
                flops = 3 * 2 * run().numel() * weight[0].numel()
                rates[label] = flops / time_call(run, options, repeats=3) / 1e12
        except RuntimeError as ex:
            rates[label] = describe_error(ex)

    return rates
