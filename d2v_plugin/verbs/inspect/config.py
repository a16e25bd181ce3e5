"""Layout of the YAML of an inspection."""

from __future__ import annotations

from dataclasses import dataclass, field

from fairseq2.recipe.config import GangSection

from d2v_plugin.core.ranges import NonNegativeInt, PositiveInt
from d2v_plugin.criteria.base import CriterionSection
from d2v_plugin.verbs.common import BoundedCommonSection, CheckpointConfig


@dataclass(kw_only=True)
class InspectConfig(CheckpointConfig):
    """The sections of an inspection."""

    criterion: CriterionSection | None = None
    """What draws masks and has a teacher; the run's by default."""

    split: str = "valid"
    """The manifest, with or without labels."""

    num_samples: PositiveInt = 4
    """How many samples are shown, from the first on."""

    num_embedded: NonNegativeInt = 500
    """How many samples TensorBoard's projector shows; 0 = none."""

    step: PositiveInt = 1
    """The update whose masks are shown."""

    gang: GangSection = field(default_factory=GangSection)
    """How processes are grouped."""

    common: BoundedCommonSection = field(default_factory=BoundedCommonSection)
    """Seed, recorders, threads."""
