"""Layout of the YAML of an inspection."""

from __future__ import annotations

from dataclasses import dataclass, field

from fairseq2.recipe.config import CommonSection, GangSection
from fairseq2.utils.validation import ValidationResult
from typing_extensions import override

from d2v_plugin.core.validation import report
from d2v_plugin.criteria.base import CriterionSection
from d2v_plugin.verbs.common import CheckpointConfig


@dataclass(kw_only=True)
class InspectConfig(CheckpointConfig):
    """The sections of an inspection."""

    criterion: CriterionSection | None = None
    """What draws masks and has a teacher; the run's by default."""

    split: str = "valid"
    """The manifest, with or without labels."""

    num_samples: int = 4
    """How many samples are shown, from the first on."""

    num_embedded: int = 500
    """How many samples TensorBoard's projector shows; 0 = none."""

    step: int = 1
    """The update whose masks are shown."""

    gang: GangSection = field(default_factory=GangSection)
    """How processes are grouped."""

    common: CommonSection = field(default_factory=lambda: CommonSection(no_sweep_dir=True))
    """Seed, recorders, threads."""

    @override
    def validate(self) -> ValidationResult:
        too_few = f"`num_samples` must be at least 1, but is {self.num_samples}."

        return report(
            (self.num_samples < 1, too_few),
            (self.num_embedded < 0, f"`num_embedded` must be at least 0, but is {self.num_embedded}."),
            (self.step < 1, f"`step` must be at least 1, but is {self.step}."),
            base=super().validate(),
        )
