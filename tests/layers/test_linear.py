"""Products by oneDNN are those of PyTorch, in outputs and gradients; small ones, and other dtypes, stay PyTorch's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v_plugin.layers import linear as linears
from d2v_plugin.layers.feed_forward import FeedForward, norm_feed_forward
from d2v_plugin.layers.linear import Linear, linear_gelu


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What oneDNN computes, however small."""
    found: list[str] = []

    def run(*args: Any) -> Tensor:
        found.append(args[3])
        return original(*args)

    original = linears._compute
    monkeypatch.setattr(linears, "_compute", run)
    monkeypatch.setattr(linears, "LARGE", 1)
    return found


def differentiate(function: Any, x: Tensor, *modules: nn.Module) -> list[Tensor]:
    x = x.detach().requires_grad_(True)
    outputs = function(x)
    parameters = [p for module in modules for p in module.parameters()]
    weights = [torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(x.dtype) for output in outputs]
    loss = sum(((output * weight).sum() for output, weight in zip(outputs, weights, strict=True)), x.new_zeros(()))
    return [*outputs, *torch.autograd.grad(loss, [x, *parameters])]


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_and_its_gradients(bias: bool, calls: list[str]) -> None:
    torch.manual_seed(1)
    own = Linear(24, 40, bias=bias)
    theirs = nn.Linear(24, 40, bias=bias).double()
    theirs.load_state_dict(own.state_dict())
    x = torch.randn(2, 5, 48)[..., ::2]  # not contiguous

    found = differentiate(lambda x: [own(x)], x, own)
    for actual, expected in zip(found, differentiate(lambda x: [theirs(x)], x.double(), theirs), strict=True):
        torch.testing.assert_close(actual.double(), expected, atol=1e-5, rtol=1e-5)
    assert calls == ["none", "none"]


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="PyTorch computes on such a processor")
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("size", [200, 1 << 22])
def test_bf16_is_as_near_to_exact_numbers_as_pytorchs(
    autocast: bool, size: int, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pieces, too; what weights are, gradients are."""
    monkeypatch.setattr(linears, "PIECE_SIZE", size)
    torch.manual_seed(1)
    layers = [Linear(24, 40), nn.Linear(24, 40)]
    x, exact = torch.randn(2, 5, 24).bfloat16(), nn.Linear(24, 40).double()
    for layer in (layers[1], exact):
        layer.load_state_dict(layers[0].bfloat16().state_dict())  # the same numbers everywhere
    if autocast:
        x, layers = x.float(), [layer.float() for layer in layers]
    expected = differentiate(lambda x: [exact(x)], x.double(), exact)
    own, theirs = [], []
    for found, layer in zip((own, theirs), layers if autocast else [layers[0], layers[1].bfloat16()], strict=True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found += differentiate(lambda x, layer=layer: [layer(x)], x, layer)

    def error(actual: Tensor, expected: Tensor) -> float:
        return float((actual.double() - expected).detach().norm() / expected.detach().norm())

    for actual, reference, right in zip(own, theirs, expected, strict=True):
        assert actual.dtype == reference.dtype and error(actual, right) <= 1.1 * error(reference, right) + 1e-6
    assert calls == ["none"] * (2 if size > 400 else 4)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.no_grad():
        assert error(linear_gelu(x, layers[0]), F.gelu(exact(x.double()))) < 4e-3


def test_norm_and_feed_forward_layers(calls: list[str]) -> None:
    torch.manual_seed(1)
    norm, mlp, x = nn.LayerNorm(16), FeedForward(16, 48, 0.0), torch.randn(3, 7, 16)
    exact_norm, exact = copy.deepcopy(norm).double(), copy.deepcopy(mlp).double()

    def expect(x: Tensor) -> list[Tensor]:
        x = exact_norm(x)
        return [x, F.linear(F.gelu(F.linear(x, *exact.fc1.parameters())), *exact.fc2.parameters())]

    found = differentiate(lambda x: norm_feed_forward(x, norm, mlp), x, norm, mlp)
    for actual, expected in zip(found, differentiate(expect, x.double(), exact_norm, exact), strict=True):
        torch.testing.assert_close(actual.double(), expected, atol=1e-5, rtol=1e-5)
    assert calls == ["none"] * 4
    with torch.no_grad():
        torch.testing.assert_close(mlp(x).double(), exact.fc2(F.gelu(exact.fc1(x.double()))), atol=1e-5, rtol=1e-5)
    assert calls[4:] == ["gelu", "none"]


def test_what_is_small_or_of_another_dtype_is_pytorchs(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Linear(8, 8), torch.randn(4, 8)
    with torch.no_grad():
        assert copy.deepcopy(layer).double()(x.double()).dtype == torch.float64
        with torch.autocast("cpu", torch.float16):
            assert layer(x).dtype == linear_gelu(x, layer).dtype == torch.float16
    with pytest.raises(RuntimeError, match="dtype"):
        layer(x.bfloat16())
    program = torch.export.export(layer.eval(), (x,))
    assert not any("mkldnn" in str(node.target) for node in program.graph.nodes)
    monkeypatch.setattr(linears, "LARGE", 4 * 8 * 8 + 1)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), atol=0, rtol=0)
    assert not calls
