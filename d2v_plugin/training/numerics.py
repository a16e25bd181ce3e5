"""Fast or exact: what a GPU may round, and in which order it may add."""

from __future__ import annotations

import os

import torch
from fairseq2.device import Device


def set_numerics(device: Device, *, deterministic: bool, allow_tf32: bool) -> None:
    """Choose the kernels of a run, after fairseq2 and before the first product.

    :param deterministic: kernels that give the same bits in every run, which are slower, and no TF32; a function that has no such
        kernel raises. On a CPU all are so in any case.
    :param allow_tf32: whether products of fp32 matrices are rounded to TF32.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it with its first product
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
        if torch.cuda.is_available():
            torch.backends.fp32_precision = "ieee"  # type: ignore[attr-defined]
    if device.type == "cuda":
        # fairseq2 sets the same by PyTorch's newer names alone. Where both kinds differ, code generators that ask by the older
        # one (`torch.get_float32_matmul_precision`) raise.
        torch.set_float32_matmul_precision("high" if allow_tf32 and not deterministic else "highest")


def describe_numerics(*, allow_tf32: bool) -> str:
    """What a run on a GPU is, in words."""
    if torch.are_deterministic_algorithms_enabled():
        return "exact: deterministic kernels, no TF32"
    rounding = "fp32 products in TF32" if allow_tf32 else "no TF32"

    return f"fast: {rounding}, sums in any order (`trainer.deterministic=true` is exact)"
