"""Layout of the YAML of predicting."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from fairseq2.recipe.config import CommonSection, GangSection
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from d2v_plugin.core.validation import report
from d2v_plugin.criteria.base import CriterionSection
from d2v_plugin.inference.model import CHUNK_SECONDS
from d2v_plugin.verbs.common import CheckpointConfig, check_common


@dataclass(kw_only=True)
class PredictionSection(Validatable):
    """Says how answers are computed, and how much of them is written."""

    top_k: int = 5
    """Classes that are named of each sample, at most."""

    threshold: float = 0.5
    """Tags that are at least so likely are named; 0 = all."""

    batch_size: int = 32
    """Most samples in one forward pass; for speech the task's ``max_num_elements`` is a second limit."""

    chunk_seconds: float | None = CHUNK_SECONDS
    """Recordings longer than this are computed in chunks that overlap by a quarter, which bounds memory and time; others are
    computed whole and exactly. None = all are."""

    part_size: int = 1000
    """Samples after which results are written, so that a run that is stopped goes on from there."""

    amp: bool = False
    """Whether to compute in bfloat16, which is faster on GPUs; probabilities then depend a little on the batch."""

    @override
    def validate(self) -> ValidationResult:
        counts = {"top_k": self.top_k, "batch_size": self.batch_size, "part_size": self.part_size}
        return report(
            *((value < 1, f"`{name}` must be at least 1, but is {value}.") for name, value in counts.items()),
            (not 0.0 <= self.threshold <= 1.0, f"`threshold` must be from 0 to 1, but is {self.threshold}."),
            (
                self.chunk_seconds is not None and not 1.0 <= self.chunk_seconds < math.inf,
                f"`chunk_seconds` must be at least 1, but is {self.chunk_seconds}.",
            ),
        )


@dataclass(kw_only=True)
class PredictConfig(CheckpointConfig):
    """The sections of predicting."""

    criterion: CriterionSection | None = None
    """What predicts; the run's by default. A search with a lexicon and a language model is set here."""

    inputs: str | list[str] = field(default_factory=list)
    """What is predicted: a file, a folder, a manifest, or a list of these."""

    prediction: PredictionSection = field(default_factory=PredictionSection)
    """How, and what is written."""

    gang: GangSection = field(default_factory=GangSection)
    """How processes are grouped."""

    common: CommonSection = field(default_factory=lambda: CommonSection(no_sweep_dir=True))
    """Seed, recorders, threads."""

    @property
    def listed_inputs(self) -> list[str]:
        """All inputs, one or many."""
        return [self.inputs] if isinstance(self.inputs, str) else self.inputs

    @override
    def validate(self) -> ValidationResult:
        path: Any = self.checkpoint.path
        return report(
            *check_common(self.common),
            (path is None, "`checkpoint.path` must be set: the output directory of a fine-tuning run, for example."),
            (not any(self.listed_inputs), "`inputs` must name a file, a folder or a manifest, or be a list of these."),
        )
