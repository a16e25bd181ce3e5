"""Contracts between the packages: the step, masked views, the loss, observations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import register_dataclass

from d2v_plugin.core.batch import Batch, Grid
from d2v_plugin.core.random import row_keys


@dataclass(frozen=True)
class StepInfo:
    """Place in training; with the sample ids it is the only source of randomness of a criterion."""

    number: int
    """The update being computed, from 1."""

    seed: int
    """The run's seed, the same on all ranks."""

    def keys(self, ids: Tensor, num_views: int = 1) -> Tensor:
        """Hash what identifies each view of each sample in this update: the keys of all its random numbers.

        :param ids: (N,) int64
        :param num_views: M
        :returns: (N·M,) int64; the views of a sample are adjacent.
        """
        return row_keys(self.seed, self.number, ids, num_views)


@dataclass(frozen=True)
class Views:
    """M masked views of each of N samples; the views of a sample are adjacent, and all mask equally many tokens."""

    kept: Tensor
    """(N·M, K) int64 positions of the visible tokens, ascending."""

    masked: Tensor
    """(N·M, S - K) int64 the other positions, ascending."""

    padding_mask: Tensor | None
    """(N·M, S), True = padding; None = nothing is padded."""

    keys: Tensor
    """(N·M,) from :meth:`StepInfo.keys`: what further random numbers of a view are drawn from."""

    num_views: int = 1
    """M"""

    grid: Grid | None = None
    """(H, W) in which the S tokens lie, row by row; None = in a sequence."""

    @property
    def mask(self) -> Tensor:
        """(N·M, S) bool, True = masked."""
        return mark_positions(self.masked, self.kept.size(1) + self.masked.size(1))


def mark_positions(positions: Tensor, length: int) -> Tensor:
    """Positions (R, K) -> (R, length) bool, True there."""
    mask = torch.zeros((positions.size(0), length), dtype=torch.bool, device=positions.device)

    return mask.scatter_(1, positions, True)


@dataclass
class Observation:
    """Tensors of a forward pass that show whether a model still tells positions apart; nothing is copied."""

    local: Tensor | None = None
    """(N, S, D) the frontend's features of each token by itself."""

    targets: Tensor | None = None
    """(N, S, D) the teacher's targets, of whole samples."""

    predictions: Tensor | None = None
    """(R, K, D) the student's predictions in each of R masked views, or (P, D) if they mask differently many positions."""

    padding_mask: Tensor | None = None
    """(N, S), True = padding."""


@dataclass
class LossOutput:
    """Result of a criterion for one batch."""

    loss: Tensor
    """Scalar: the *sum* over targets. fairseq2 divides the gradients by the number of targets on all ranks."""

    num_targets: int
    """Number of targets that were summed; at least 1 on every rank (0 would deadlock fairseq2's trainer)."""

    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Scalars to report, detached: means over this batch. The keys are ``Criterion.metric_names``."""

    observation: Observation | None = None
    """Input of the collapse watch; None = nothing."""


# FSDP waits for the backward pass at the tensors that the whole model returns, and finds them only in types that are registered.
# Without that, gradients would never be reduced in updates in which no block of the encoder gets any.
register_dataclass(LossOutput)


class Objective(nn.Module, ABC):
    """Interface of a criterion to the model that it trains, see :class:`d2v_plugin.criteria.base.Criterion`."""

    @abstractmethod
    def forward(self, model: Any, batch: Batch, step: StepInfo) -> LossOutput:
        """Compute the loss of one batch."""

    def freeze_constants(self) -> None:
        """Exclude from training what the optimizer must not touch, such as a teacher; called when gradients are switched on."""


Spell = Callable[[Sequence[int]], list[str]]
"""Turns token ids into the pieces of words that they stand for."""
