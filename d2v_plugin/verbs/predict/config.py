"""Layout of the YAML of predicting."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from fairseq2.recipe.config import GangSection
from fairseq2.utils.validation import ValidationResult
from typing_extensions import override

from d2v_plugin.core.ranges import PositiveInt, Probability, Range
from d2v_plugin.core.validation import Checked, report
from d2v_plugin.criteria.base import CriterionSection
from d2v_plugin.inference.model import CHUNK_SECONDS
from d2v_plugin.verbs.common import BoundedCommonSection, CheckpointConfig


@dataclass(kw_only=True)
class PredictionSection(Checked):
    """Says how answers are computed, and how much of them is written."""

    top_k: PositiveInt = 5
    """Classes that are named of each sample, at most."""

    threshold: Probability = 0.5
    """Tags that are at least so likely are named; 0 = all."""

    batch_size: PositiveInt = 32
    """Most samples in one forward pass; for speech the task's ``max_num_elements`` is a second limit."""

    chunk_seconds: Annotated[float | None, Range(">= 1, < 1e6")] = CHUNK_SECONDS
    """Recordings longer than this are computed in chunks that overlap by a quarter, which bounds memory and time; others are
    computed whole and exactly. None = all are."""

    part_size: PositiveInt = 1000
    """Samples after which results are written, so that a run that is stopped goes on from there."""

    amp: bool = False
    """Whether to compute in bfloat16, which is faster on GPUs; probabilities then depend a little on the batch."""


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

    common: BoundedCommonSection = field(default_factory=BoundedCommonSection)
    """Seed, recorders, threads."""

    @property
    def listed_inputs(self) -> list[str]:
        """All inputs, one or many."""
        return [self.inputs] if isinstance(self.inputs, str) else self.inputs

    @override
    def validate(self) -> ValidationResult:
        path: Any = self.checkpoint.path
        return report(
            (path is None, "`checkpoint.path` must be set: the output directory of a fine-tuning run, for example."),
            (not any(self.listed_inputs), "`inputs` must name a file, a folder or a manifest, or be a list of these."),
        )
