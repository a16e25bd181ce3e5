"""Layout of the YAML of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field

from fairseq2.recipe.config import EvaluatorSection, GangSection

from d2v_plugin.criteria.base import CriterionSection
from d2v_plugin.probing.section import ProbingSection
from d2v_plugin.verbs.common import BoundedCommonSection, CheckpointConfig


@dataclass(kw_only=True)
class EvaluateConfig(CheckpointConfig):
    """The sections of an evaluation."""

    criterion: CriterionSection | None = None
    """What predicts; the run's by default."""

    splits: list[str] = field(default_factory=lambda: ["valid"])
    """The labelled splits that a fine-tuned model is scored on."""

    probing: ProbingSection = field(default_factory=lambda: ProbingSection(baselines=False))
    """The probes that measure the features of any model."""

    evaluator: EvaluatorSection = field(default_factory=EvaluatorSection)
    """The precision, fp32 by default."""

    gang: GangSection = field(default_factory=GangSection)
    """How processes are grouped."""

    common: BoundedCommonSection = field(default_factory=BoundedCommonSection)
    """Seed, recorders, threads."""
