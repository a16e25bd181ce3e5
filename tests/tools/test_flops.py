"""FLOPs of what has kernels of its own on a CPU."""

from __future__ import annotations

import pytest
import torch

from d2v_plugin.layers import linear
from tools.flops import count_flops


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_linear_layers_by_onednn_count(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "LARGE", 0)
    monkeypatch.setattr(linear, "PIECE_SIZE", 64)
    layer, x = linear.Linear(16, 32), torch.randn(8, 16, requires_grad=True)

    def run() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            layer(x).sum().backward()

    # The output and both gradients.
    assert count_flops(run) == 3 * 2 * 8 * 16 * 32
