"""The teacher's weights: an exponential moving average of the student's (data2vec, section 3.2)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.sgd import sgd

from d2v_plugin.core.ranges import PositiveInt, Probability
from d2v_plugin.core.validation import Checked


@dataclass(kw_only=True)
class EmaConfig(Checked):
    """Decay of the average: linear from ``start`` to ``end``, constant afterwards."""

    start: Probability = 0.999
    """Decay at the beginning."""

    end: Probability = 0.9999
    """Decay from update ``anneal_steps`` on; 1 freezes the teacher."""

    anneal_steps: PositiveInt = 100_000
    """Updates until ``end`` is reached."""


def decay_at(config: EmaConfig, step_nr: int) -> float:
    """The decay with which the teacher absorbs the student of update ``step_nr``; a function of the step alone."""
    if step_nr >= config.anneal_steps:
        return config.end

    return config.end - (config.end - config.start) * (1 - step_nr / config.anneal_steps)


@torch.no_grad()
def update_average(average: Iterable[Tensor], current: Iterable[Tensor], decay: float, *, skip: Tensor | None = None) -> None:
    """average <- decay · average + (1 - decay) · current, in place and in one launch per dtype.

    Sharded tensors are updated shard by shard: both sides are sharded alike.

    :param skip: a scalar in fp32 on the device of all; 1 = nothing changes, 0 = the average moves. None = it moves.
    """
    if decay >= 1.0:
        return
    averages, targets, rate = [_local(t) for t in average], [_local(t) for t in current], 1.0 - decay
    if skip is None:
        torch._foreach_lerp_(averages, targets, rate)
        return
    # The same is a step of ascent along `targets` with weight decay 1, whose fused kernel can leave it out on the device.
    sgd(
        averages, targets, [None] * len(averages), fused=True, found_inf=skip,
        lr=rate, weight_decay=1.0, maximize=True, momentum=0.0, dampening=0.0, nesterov=False,
    )  # fmt: skip


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
