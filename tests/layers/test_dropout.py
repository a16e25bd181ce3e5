"""Dropout with hashed masks has the rate, the scale and the gradients of PyTorch's."""

from __future__ import annotations

import pytest
import torch

from d2v_plugin.layers.dropout import Dropout, add_dropped


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_rate_and_scale(rate: float) -> None:
    torch.manual_seed(0)
    x = Dropout(rate)(torch.ones(1100, 1001))  # several pieces, the last one odd

    dropped = x == 0.0
    assert dropped.float().mean() == pytest.approx(rate, abs=2e-3)
    assert torch.allclose(x[~dropped], torch.tensor(1 / (1 - rate)), rtol=1e-4)
    assert dropped.float().mean(dim=0).std() == pytest.approx((rate * (1 - rate) / 1100) ** 0.5, rel=0.1)
    assert dropped.float().mean(dim=1).std() == pytest.approx((rate * (1 - rate) / 1001) ** 0.5, rel=0.1)


def test_the_gradient_has_the_same_mask() -> None:
    x = torch.randn(700, 800, requires_grad=True)
    y = Dropout(0.3)(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)

    assert torch.equal(gradient == 0.0, y == 0.0)
    assert torch.allclose(gradient * x, y, atol=1e-6)


def test_the_generator_of_pytorch_decides() -> None:
    dropout, x = Dropout(0.5), torch.ones(100)
    torch.manual_seed(1)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(1)

    assert torch.equal(dropout(x), first)
    assert not torch.equal(first, second)
    assert dropout.eval()(x) is x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sum_with_dropout_equals_dropout_and_then_the_sum(dtype: torch.dtype) -> None:
    dropout = Dropout(0.3)
    torch.manual_seed(0)
    x, y = torch.randn(700, 801, requires_grad=True), torch.randn(700, 801).to(dtype).requires_grad_(True)
    outcomes = []
    for add in (lambda: add_dropped(x, y, dropout), lambda: x + dropout(y.float())):
        torch.manual_seed(1)
        total = add()
        outcomes.append((total, *torch.autograd.grad(total.sin().sum(), (x, y))))

    for ours, theirs in zip(*outcomes, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.allclose(ours, theirs, rtol=1e-6 if dtype is torch.float32 else 1e-2, atol=1e-5)
    assert torch.equal(add_dropped(x, y, dropout.eval()), x + y)
