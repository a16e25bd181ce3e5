"""What is computed twice to save memory has the values and gradients of what it stands for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from d2v_plugin.models.recomputation import gelu_linear, norm_gelu


def test_feed_forward_layers_keep_their_input_only() -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(12, 5), torch.randn(3, 4, 12, requires_grad=True)
    inputs = (x, linear.weight, linear.bias)

    ours, theirs = gelu_linear(x, linear), linear(F.gelu(x))

    assert torch.equal(ours, theirs)
    grad = torch.randn(3, 4, 5)
    for a, b in zip(torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(theirs, inputs, grad), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_norms_of_convolutions_keep_their_input_only() -> None:
    x = torch.randn(3, 7, 12, requires_grad=True)
    ours, theirs = norm_gelu(x), F.gelu(F.layer_norm(x, (12,)))

    assert torch.equal(ours, theirs)
    grad = torch.randn(3, 7, 12)
    (a,), (b,) = torch.autograd.grad(ours, x, grad), torch.autograd.grad(theirs, x, grad)
    assert torch.allclose(a, b, atol=1e-6)


def test_bf16_is_that_of_autocast() -> None:
    linear, x = nn.Linear(12, 5), torch.randn(3, 12)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = (x @ torch.randn(12, 12)).requires_grad_(True)
        ours, theirs = gelu_linear(hidden, linear), linear(F.gelu(hidden))

    assert hidden.dtype == ours.dtype == torch.bfloat16
    assert torch.equal(ours, theirs)
