"""What is computed twice to save memory has the values and gradients of what it stands for."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v_plugin.layers import feed_forward
from d2v_plugin.layers.convolution import norm_gelu
from d2v_plugin.layers.dropout import Dropout
from d2v_plugin.layers.feed_forward import FeedForward, norm_feed_forward, norm_two_layers


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five tokens at a time, and two in the last piece."""
    monkeypatch.setattr(feed_forward, "_rows_per_piece", lambda hidden: 5)


def build_layers(*, affine: bool = True) -> tuple[nn.LayerNorm, nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    norm = nn.LayerNorm(12, eps=1e-3, elementwise_affine=affine)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)

    return norm, nn.Linear(12, 20), nn.Linear(20, 12)


def compute_plainly(x: Tensor, norm: nn.LayerNorm, fc1: nn.Linear, fc2: nn.Linear) -> tuple[Tensor, Tensor]:
    normed = norm(x)

    return normed, fc2(F.gelu(fc1(normed)))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_feed_forward_layers_are_those_of_pytorch(affine: bool, precision: str) -> None:
    layers = build_layers(affine=affine)
    x = torch.randn(3, 4, 12, requires_grad=True)
    inputs = [x, *(parameter for layer in layers for parameter in layer.parameters())]
    grads = [torch.randn(3, 4, 12), torch.randn(3, 4, 12)]

    with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
        ours, theirs = norm_two_layers(x, *layers, Dropout(0.0)), compute_plainly(x, *layers)

    tolerance = 2e-2 if precision == "bf16" else 1e-5
    for a, b, grad in zip(ours, theirs, grads, strict=True):
        assert a.dtype == b.dtype
        assert torch.allclose(a, b, rtol=tolerance, atol=tolerance)
        grad.data = grad.to(a.dtype)
    for a, b in zip(torch.autograd.grad(ours, inputs, grads), torch.autograd.grad(theirs, inputs, grads), strict=True):
        assert a.dtype == b.dtype
        assert torch.allclose(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()))


def test_feed_forward_layers_keep_one_wide_tensor() -> None:
    """Nothing but the input and the hidden features, and two numbers per token for the norm."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    layers, x = build_layers(), torch.randn(300, 12, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = norm_two_layers(x, *layers, Dropout(0.0))

    assert len(outputs) == 2
    assert sum(size for size in kept.values() if size > 1000) == 300 * (12 + 20)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_module_is_called_after_its_norm(dropout: float) -> None:
    torch.manual_seed(0)
    norm, mlp, x = nn.LayerNorm(12), FeedForward(12, 20, dropout), torch.randn(3, 4, 12)
    torch.manual_seed(1)
    normed, output = norm_feed_forward(x, norm, mlp)
    torch.manual_seed(1)

    assert torch.equal(normed, norm(x))
    assert torch.allclose(output, mlp(norm(x)), atol=1e-6)
    assert bool((output == 0.0).any()) == (dropout > 0.0)


@pytest.mark.parametrize("affine", [True, False])
def test_norms_of_convolutions_keep_their_input_only(affine: bool) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(3, 7, 12, requires_grad=True)]
    if affine:
        inputs += [torch.randn(12, requires_grad=True), torch.randn(12, requires_grad=True)]
    ours, theirs = norm_gelu(*inputs), F.gelu(F.layer_norm(inputs[0], (12,), *inputs[1:]))

    assert torch.equal(ours, theirs)
    grad = torch.randn(3, 7, 12)
    for a, b in zip(torch.autograd.grad(ours, inputs, grad), torch.autograd.grad(theirs, inputs, grad), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
