"""Gradients of a part of a model, scaled."""

from __future__ import annotations

from collections.abc import Callable

import torch
from fairseq2.nn.utils.grad import scale_grad
from torch import Tensor


def scale_gradient(function: Callable[[Tensor], Tensor], inputs: Tensor, scale: float) -> Tensor:
    """``function(inputs)`` with the gradient of its parameters scaled; 0 freezes it without computing any."""
    with torch.set_grad_enabled(torch.is_grad_enabled() and scale > 0.0):
        x = function(inputs)

        return scale_grad(x, scale) if 0.0 < scale != 1.0 else x
