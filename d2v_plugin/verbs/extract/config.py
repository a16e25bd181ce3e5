"""Layout of the YAML of an extraction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from fairseq2.recipe.config import GangSection
from fairseq2.utils.validation import ValidationResult
from typing_extensions import override

from d2v_plugin.core.ranges import PositiveInt, Range
from d2v_plugin.core.validation import Checked, report
from d2v_plugin.models.pooling import Layers
from d2v_plugin.verbs.common import BoundedCommonSection, CheckpointConfig


@dataclass(kw_only=True)
class FeaturesSection(Checked):
    """Selects the features that are written, and their format."""

    layers: Layers = field(default_factory=lambda: [-1])
    """The blocks whose output is written: from 0, or from the last one, -1; or ``all``. Each gives an array ``layer_3``."""

    top_k: PositiveInt | None = None
    """Instead of ``layers``: one array, ``top_8``, the mean of the output of the last so many blocks."""

    pooling: Literal["mean", "statistics", "cls", "none"] = "mean"
    """One vector per sample: the ``mean`` of its tokens, ``statistics`` (mean and standard deviation) or ``cls`` (the class
    token); or ``none``: all tokens, that is, frames, patches or pieces of text."""

    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """How numbers are stored."""

    format: Literal["safetensors", "numpy"] = "safetensors"
    """One file per shard, or a folder of arrays (``.npy``) that NumPy can map into memory."""

    shard_size: PositiveInt = 1000
    """Samples per shard. A shard lies in memory, in parts twice, before it is written."""

    batch_size: PositiveInt = 32
    """Most samples in one forward pass; for speech the task's ``max_num_elements`` is a second limit."""

    chunk_seconds: Annotated[float | None, Range(">= 1, < 1e6")] = None
    """Speech: recordings longer than this are computed in chunks that overlap by a quarter, which bounds memory and time; shorter
    ones are computed whole and exactly. None = all are."""

    amp: bool = False
    """Whether to compute in bfloat16, which is faster on GPUs; features then depend a little on the batch."""

    @override
    def validate(self) -> ValidationResult:
        return report(
            (
                self.format == "numpy" and self.dtype == "bfloat16",
                "`dtype` must not be bfloat16 if `format` is numpy, which does not have it; choose float16.",
            ),
            base=super().validate(),
        )


@dataclass(kw_only=True)
class ExtractConfig(CheckpointConfig):
    """The sections of an extraction."""

    split: str = "valid"
    """The manifest, with or without labels."""

    features: FeaturesSection = field(default_factory=FeaturesSection)
    """What is written."""

    gang: GangSection = field(default_factory=GangSection)
    """How processes are grouped."""

    common: BoundedCommonSection = field(default_factory=BoundedCommonSection)
    """Seed, recorders, threads."""
