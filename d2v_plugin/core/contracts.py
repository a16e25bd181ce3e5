"""What travels between the packages: the step, the loss, what is observed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor


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


Spell = Callable[[Sequence[int]], list[str]]
"""Turns token ids into the pieces of words that they stand for."""
