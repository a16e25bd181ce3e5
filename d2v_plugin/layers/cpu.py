"""The switch of all that this folder does differently on a CPU; skip it at first reading.

CPUs get kernels of our own for what PyTorch lacks or does slowly there (dropout, attention with dropout or a learned bias, dense
convolutions), and compute cheap functions twice rather than keep their results: memory matters more than time, on which it has
no measurable effect. On other devices PyTorch's own functions run; compiled code decides by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor


def uses_own_kernels(x: Tensor) -> bool:
    """Tell whether functions of ``x`` run kernels of our own."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def recomputes(x: Tensor) -> bool:
    """Tell whether functions of ``x`` are to be computed again in the backward pass."""
    return uses_own_kernels(x) and torch.is_grad_enabled()
