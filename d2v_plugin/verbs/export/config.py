"""Layout of the YAML of an export."""

from __future__ import annotations

from dataclasses import dataclass, field

from fairseq2.recipe.config import GangSection
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from d2v_plugin.core.registry import unknown_name
from d2v_plugin.core.validation import report
from d2v_plugin.exporting.formats import FORMATS
from d2v_plugin.verbs.common import BoundedCommonSection, CheckpointSection


@dataclass(kw_only=True)
class ExportConfig(Validatable):
    """The sections of an export."""

    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    """Which model."""

    format: str | None = None
    """What it is written as, see :data:`d2v_plugin.exporting.formats.FORMATS`."""

    head: bool = True
    """Write the head of a fine-tuned model, too; otherwise the encoder alone."""

    gang: GangSection = field(default_factory=GangSection)
    """How processes are grouped; one does all."""

    common: BoundedCommonSection = field(default_factory=BoundedCommonSection)
    """Seed, recorders, threads."""

    @override
    def validate(self) -> ValidationResult:
        known, given = ", ".join(FORMATS), self.format

        return report(
            (self.checkpoint.path is None, "`checkpoint.path` must be set: the output directory of a run, for example."),
            (given is None, f"`format` must be set: {known}."),
            (given is not None and given not in FORMATS, unknown_name("format", given or "", FORMATS)),
        )
