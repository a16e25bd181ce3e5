"""Layer drop: in training whole blocks are left out at random (arXiv 1909.11556).

Which ones is drawn once per update, from its number and the run's seed: all ranks and all forward passes of an update leave out
the same, so that neither the number of ranks nor gradient accumulation changes what is computed. The block is computed in any
case, which keeps the autograd graph the same in every update, as data parallelism wants it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from d2v_plugin.core.contracts import StepInfo
from d2v_plugin.core.random import Stream, uniform


class LayerDrop(nn.Module):
    """Chooses between the output of a block and its input."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.leaves_out: bool | None = None

    def forward(self, x: Tensor, skipped: Tensor) -> Tensor:
        """
        :param x: the block's output.
        :param skipped: its input.
        """
        if not self.training or self.rate == 0.0:
            return x
        if self.leaves_out is None:  # outside of a training step nobody draws
            return torch.where(torch.rand((), device=x.device) >= self.rate, x, skipped)
        # Only what is left out costs a copy.
        return torch.where(x.new_zeros((), dtype=torch.bool), x, skipped) if self.leaves_out else x


def draw_layers(model: nn.Module, step: StepInfo) -> None:
    """Draw which blocks this update leaves out; on the host, which need not wait for the device to know."""
    layers = [module for module in model.modules() if isinstance(module, LayerDrop) and module.training and module.rate > 0.0]
    if layers:
        draws = uniform(step.keys(torch.arange(len(layers))), 1, stream=Stream.LAYERS).flatten().tolist()
        for layer, draw in zip(layers, draws, strict=True):
            layer.leaves_out = draw < layer.rate
