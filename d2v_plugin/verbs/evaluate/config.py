"""What the YAML of an evaluation may contain."""

from __future__ import annotations

from dataclasses import dataclass, field

from fairseq2.recipe.config import CommonSection, DatasetSection, EvaluatorSection, GangSection
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from d2v_plugin.criteria.base import CriterionSection
from d2v_plugin.probing.section import ProbingSection
from d2v_plugin.tasks.base import TaskSection
from d2v_plugin.verbs.common import CheckpointSection


@dataclass(kw_only=True)
class EvaluateConfig(Validatable):
    """The sections of an evaluation. Of a run's checkpoint ``task``, ``dataset`` and ``criterion`` are known: a YAML or the
    command line names what shall differ."""

    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    """Which model."""

    task: TaskSection | None = None
    """How samples are read; the run's by default."""

    dataset: DatasetSection | None = None
    """What is read; the run's by default."""

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

    common: CommonSection = field(default_factory=lambda: CommonSection(no_sweep_dir=True))
    """Seed, recorders, threads."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.checkpoint.path is None:
            result.add_error("`checkpoint.path` must be set: the output directory of a run, for example.")
        elif self.task is None or self.dataset is None:
            result.add_error(
                f"`task` and `dataset` must be set, because nothing in {self.checkpoint.path} says what the model was trained on."
            )

        return result
