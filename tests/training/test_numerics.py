"""Exact by choice: fixed kernels, and gradients of shared tokens that are summed in one order and in fp32."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from d2v_plugin.models.data2vec2.frontends.base import select_tokens
from d2v_plugin.training.numerics import describe_numerics, set_numerics


@pytest.fixture
def numerics() -> Iterator[None]:
    benchmark, workspace = torch.backends.cudnn.benchmark, os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = benchmark
    torch.set_float32_matmul_precision("highest")
    if workspace is None:
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def take_gradient(positions: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, str]:
    x = torch.randn(2, 10, 3, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_()
    selected = select_tokens(x, positions)
    selected.backward(grad)
    assert x.grad is not None and selected.grad_fn is not None

    return selected.detach(), x.grad, selected.grad_fn.name()


def test_tokens_of_many_views_get_one_sum_of_fp32(numerics: None) -> None:
    generator = torch.Generator().manual_seed(0)
    positions = torch.rand(2 * 8, 10, generator=generator).argsort(dim=1)[:, :6]
    grad = torch.randn(2 * 8, 6, 3, generator=generator).bfloat16()
    expected = torch.zeros(2, 8, 10, 3).scatter_(
        2, positions.view(2, 8, 6, 1).expand(-1, -1, -1, 3), grad.float().view(2, 8, 6, 3)
    )

    fast, _, fast_name = take_gradient(positions, grad)
    set_numerics(torch.device("cpu"), deterministic=True, allow_tf32=True)
    exact, summed, exact_name = take_gradient(positions, grad)

    assert torch.equal(exact, fast)
    assert torch.equal(summed, expected.sum(dim=1).bfloat16()) and exact_name != fast_name


def test_a_run_says_what_it_is(numerics: None) -> None:
    assert describe_numerics(allow_tf32=True) == (
        "fast: fp32 products in TF32, sums in any order (`trainer.deterministic=true` is exact)"
    )
    # As fairseq2 leaves it: by the newer names alone.
    set_numerics(torch.device("cuda"), deterministic=False, allow_tf32=True)
    assert torch.get_float32_matmul_precision() == "high"
    assert "no TF32" in describe_numerics(allow_tf32=False)

    set_numerics(torch.device("cuda"), deterministic=True, allow_tf32=True)

    assert torch.get_float32_matmul_precision() == "highest" and torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] and not torch.backends.cudnn.benchmark
    assert describe_numerics(allow_tf32=True) == "exact: deterministic kernels, no TF32"
