"""Convolutions of sequences compute what PyTorch's do, and keep what they must."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v_plugin.layers.convolution import norm_gelu_convolve


@pytest.mark.parametrize(("stride", "padding"), [(2, 0), (1, 1)])
def test_norm_gelu_and_convolution_are_those_of_pytorch(stride: int, padding: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv1d(6, 8, 3, stride=stride, padding=padding)
    inputs = [torch.randn(2, 15, 6, requires_grad=True), torch.randn(6, requires_grad=True), torch.randn(6, requires_grad=True)]
    inputs += [conv.weight, conv.bias]  # type: ignore[list-item]

    ours = norm_gelu_convolve(*inputs[:3], conv)
    theirs = conv(F.gelu(F.layer_norm(inputs[0], (6,), *inputs[1:3])).transpose(1, 2)).transpose(1, 2)

    assert torch.allclose(ours, theirs, atol=1e-6)
    grad = torch.randn_like(theirs)
    for a, b in zip(torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(theirs, inputs, grad), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_the_input_of_a_convolution_is_kept_once() -> None:
    """Neither what the norm nor what GELU makes of it."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    conv, x = nn.Conv1d(6, 8, 3, stride=2, bias=False), torch.randn(2, 1500, 6, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        norm_gelu_convolve(x, torch.ones(6, requires_grad=True), torch.zeros(6, requires_grad=True), conv)

    assert sum(size for size in kept.values() if size > 1000) == x.numel()


def test_autocast_decides_the_dtype() -> None:
    torch.manual_seed(0)
    conv, weight, bias = nn.Conv1d(6, 8, 3, stride=2), torch.randn(6, requires_grad=True), torch.randn(6, requires_grad=True)
    x = torch.randn(2, 15, 6).bfloat16().requires_grad_(True)
    with torch.autocast("cpu", torch.bfloat16):
        ours = norm_gelu_convolve(x, weight, bias, conv)
        activated = F.gelu(F.layer_norm(x.float(), (6,), weight, bias).bfloat16())
        theirs = conv(activated.transpose(1, 2)).transpose(1, 2)

    assert ours.dtype == theirs.dtype == torch.bfloat16
    assert torch.allclose(ours, theirs, rtol=2e-2, atol=2e-2)
    inputs, grad = [x, weight, bias], torch.randn_like(theirs)
    for a, b in zip(torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(theirs, inputs, grad), strict=True):
        assert a.dtype == b.dtype
        assert torch.allclose(a, b, rtol=5e-2, atol=2e-2 * float(b.abs().max()))
