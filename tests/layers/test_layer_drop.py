"""Layer drop: what an update leaves out is known to the host, and costs nothing where a block stays."""

from __future__ import annotations

import torch
from torch import nn

from d2v_plugin.core.contracts import StepInfo
from d2v_plugin.core.random import Stream, uniform
from d2v_plugin.layers.layer_drop import LayerDrop, draw_layers


def test_a_block_that_stays_is_not_copied_and_one_that_is_left_out_has_zero_gradients() -> None:
    layers = nn.ModuleList(LayerDrop(0.5) for _ in range(20)).train()
    step = StepInfo(number=3, seed=1)
    draw_layers(layers, step)

    draws = uniform(step.keys(torch.arange(20)), 1, stream=Stream.LAYERS).flatten() < 0.5
    assert [layer.leaves_out for layer in layers] == draws.tolist() and draws.any() and not draws.all()
    for layer, left_out in zip(layers, draws, strict=True):
        x, skipped = torch.ones(3, requires_grad=True), torch.zeros(3, requires_grad=True)
        output = layer(x, skipped)
        if not left_out:
            assert output is x
            continue
        output.sum().backward()
        assert torch.equal(output, skipped)
        assert x.grad is not None and not x.grad.any() and skipped.grad is not None and skipped.grad.all()
