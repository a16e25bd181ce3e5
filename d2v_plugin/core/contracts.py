"""What travels between the packages: the step, the loss, what is observed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import register_dataclass

from d2v_plugin.core.batch import Batch


@dataclass(frozen=True)
class StepInfo:
    """Where training stands; with the sample ids it is the only source of randomness of a criterion."""

    number: int
    """The update being computed, from 1."""

    seed: int
    """The run's seed, the same on all ranks."""


@dataclass
class Observation:
    """What shows whether a model still tells positions apart, as it comes up in a forward pass; nothing is copied."""

    local: Tensor | None = None
    """(N, S, D) the frontend's features of each token by itself."""

    targets: Tensor | None = None
    """(N, S, D) what the teacher makes of whole samples."""

    predictions: Tensor | None = None
    """(R, K, D) what the student predicts in each of R masked versions, or (P, D) if they mask differently many positions."""

    padding_mask: Tensor | None = None
    """(N, S), True = padding."""


@dataclass
class LossOutput:
    """What a criterion computed from one batch."""

    loss: Tensor
    """Scalar: the *sum* over targets. fairseq2 divides the gradients by the number of targets on all ranks."""

    num_targets: int
    """How many targets were summed; at least 1 on every rank (0 would deadlock fairseq2's trainer)."""

    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Scalars to report, detached: means over this batch. The keys are ``Criterion.metric_names``."""

    observation: Observation | None = None
    """What the collapse watch looks at; None = nothing."""


# FSDP waits for the backward pass at the tensors that the whole model returns, and finds them only in types that are registered.
# Without that, gradients would never be reduced in updates in which no block of the encoder gets any.
register_dataclass(LossOutput)


class Objective(nn.Module, ABC):
    """What a model knows of the criterion that trains it, see :class:`d2v_plugin.criteria.base.Criterion`."""

    @abstractmethod
    def forward(self, model: Any, batch: Batch, step: StepInfo) -> LossOutput:
        """Compute the loss of one batch."""

    def freeze_constants(self) -> None:
        """Exclude from training what the optimizer must not touch, such as a teacher; called when gradients are switched on."""


Spell = Callable[[Sequence[int]], list[str]]
"""Turns token ids into the pieces of words that they stand for."""
