"""What the YAML of an extraction may contain."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fairseq2.recipe.config import CommonSection, DatasetSection, GangSection
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from d2v_plugin.models.pooling import Layers
from d2v_plugin.tasks.base import TaskSection
from d2v_plugin.verbs.common import CheckpointSection


@dataclass(kw_only=True)
class FeaturesSection(Validatable):
    """Which features are written, and how."""

    layers: Layers = field(default_factory=lambda: [-1])
    """The blocks whose output is written: from 0, or from the last one, -1; or ``all``. Each gives an array ``layer_3``."""

    top_k: int | None = None
    """Instead of ``layers``: one array, ``top_8``, the mean of the output of the last so many blocks."""

    pooling: Literal["mean", "statistics", "cls", "none"] = "mean"
    """One vector per sample: the ``mean`` of its tokens, ``statistics`` (mean and standard deviation) or ``cls`` (the class
    token); or ``none``: all tokens, that is, frames, patches or pieces of text."""

    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """How numbers are stored."""

    format: Literal["safetensors", "numpy"] = "safetensors"
    """One file per shard, or a folder of arrays (``.npy``) that NumPy can map into memory."""

    shard_size: int = 1000
    """Samples per shard. A shard lies in memory, in parts twice, before it is written."""

    batch_size: int = 32
    """Most samples in one forward pass; for speech the task's ``max_num_elements`` is a second limit."""

    amp: bool = False
    """Whether to compute in bfloat16, which is faster on GPUs; features then depend a little on the batch."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        for name in ("top_k", "shard_size", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                result.add_error(f"`{name}` must be at least 1, but is {value}.")
        if self.format == "numpy" and self.dtype == "bfloat16":
            result.add_error("`dtype` must not be bfloat16 if `format` is numpy, which does not have it; choose float16.")

        return result


@dataclass(kw_only=True)
class ExtractConfig(Validatable):
    """The sections of an extraction. Of a run's checkpoint ``task`` and ``dataset`` are known: a YAML or the command line names
    what shall differ."""

    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    """Which model."""

    task: TaskSection | None = None
    """How samples are prepared; the run's by default."""

    dataset: DatasetSection | None = None
    """What is read; the run's by default."""

    split: str = "valid"
    """The manifest, with or without labels."""

    features: FeaturesSection = field(default_factory=FeaturesSection)
    """What is written."""

    gang: GangSection = field(default_factory=GangSection)
    """How processes are grouped."""

    common: CommonSection = field(default_factory=lambda: CommonSection(no_sweep_dir=True))
    """Seed, recorders, threads."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.checkpoint.path is None:
            result.add_error("`checkpoint.path` must be set: the output directory of a run, for example.")
        if self.task is None or self.dataset is None:
            result.add_error(f"`task` and `dataset` must be set, because nothing in {self.checkpoint.path} says what to read.")

        return result
