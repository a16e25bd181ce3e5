"""Public interface for extensions: whatever a file given to ``--extension`` imports comes from here.

The names in ``__all__`` are promises: what changes here is announced in CHANGELOG.md; everything else in the package may move.
Nothing inside the package imports this module. recipes/extending.md shows one example of each kind of extension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import fairseq2.recipe  # noqa: F401  # first: other parts of fairseq2 cannot be imported before it
from fairseq2.composition import register_dataset_family
from fairseq2.metrics.formatters import format_as_float
from fairseq2.metrics.recorders import MetricDescriptor
from fairseq2.recipe.error import RecipeError
from fairseq2.runtime.config_registry import ConfigRegistrar
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.utils.validation import Validatable, ValidationResult

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import LossOutput, Observation, StepInfo, Views, mark_positions
from d2v_plugin.core.random import gaussian, uniform
from d2v_plugin.core.registry import ComponentSection, create, register
from d2v_plugin.core.validation import ensure_valid, report
from d2v_plugin.criteria.base import Criterion, MaskingCriterion
from d2v_plugin.criteria.supervised.base import SupervisedConfig, SupervisedCriterion
from d2v_plugin.criteria.supervised.classification import ClassificationConfig, ClassificationCriterion
from d2v_plugin.data.bad_samples import BadSampleConfig, BadSamples, SampleError
from d2v_plugin.data.batches import batch_rows
from d2v_plugin.data.dataset import expect_dataset
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.data.order import RowBatch, SampleOrder, share_batch
from d2v_plugin.data.reader import LabelledReader, TrainReader
from d2v_plugin.masking.base import MaskSampler, MaskSection
from d2v_plugin.masking.drawing import draw_views
from d2v_plugin.masking.random_blocks import (
    BlockMaskConfig,
    BlockMaskSampler,
    InverseBlockMaskSampler,
    RandomMaskConfig,
    RandomMaskSampler,
)
from d2v_plugin.models.base import EncoderModel, Features, LocalFeatures
from d2v_plugin.models.data2vec1.base import Data2Vec1Model
from d2v_plugin.models.data2vec1.config import Data2Vec1ModelConfig
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.models.data2vec2.frontend_config import (
    AlibiConfig,
    AudioFrontendConfig,
    DecoderConfig,
    ImageFrontendConfig,
    TextFrontendConfig,
)
from d2v_plugin.models.data2vec2.frontends.base import Frontend, select_tokens
from d2v_plugin.models.data2vec2.model import Data2VecModel
from d2v_plugin.models.families import AnyConfig, family_of
from d2v_plugin.models.pooling import pool_features, pool_tokens
from d2v_plugin.probing.base import Probe, ProbeData, VectorProbe, register_probe
from d2v_plugin.scoring.answers import Answer, Estimate, Ranking, Tagging, Transcript, Word
from d2v_plugin.scoring.predictions import Prediction, build_predictions
from d2v_plugin.tasks.base import Task

__all__ = [
    "AlibiConfig",
    "Answer",
    "AudioFrontendConfig",
    "BadSampleConfig",
    "BadSamples",
    "Batch",
    "BlockMaskConfig",
    "BlockMaskSampler",
    "ClassificationConfig",
    "ClassificationCriterion",
    "ComponentSection",
    "Criterion",
    "Data2Vec1Model",
    "Data2Vec1ModelConfig",
    "Data2VecConfig",
    "Data2VecModel",
    "DecoderConfig",
    "EncoderModel",
    "Estimate",
    "Features",
    "Frontend",
    "ImageFrontendConfig",
    "InverseBlockMaskSampler",
    "LabelSet",
    "LabelledReader",
    "LocalFeatures",
    "LossOutput",
    "MaskSampler",
    "MaskSection",
    "MaskingCriterion",
    "Modality",
    "Observation",
    "Prediction",
    "Probe",
    "ProbeData",
    "RandomMaskConfig",
    "RandomMaskSampler",
    "Ranking",
    "RecipeError",
    "RowBatch",
    "SampleError",
    "SampleOrder",
    "StepInfo",
    "SupervisedConfig",
    "SupervisedCriterion",
    "Tagging",
    "Task",
    "TextFrontendConfig",
    "TrainReader",
    "Transcript",
    "Validatable",
    "ValidationResult",
    "VectorProbe",
    "Views",
    "Word",
    "batch_rows",
    "build_predictions",
    "create",
    "draw_views",
    "ensure_valid",
    "expect_dataset",
    "gaussian",
    "mark_positions",
    "pool_features",
    "pool_tokens",
    "register",
    "register_arch",
    "register_dataset_family",
    "register_metric",
    "register_probe",
    "report",
    "select_tokens",
    "share_batch",
    "uniform",
]


def register_arch(container: DependencyContainer, name: str, create: Callable[[], AnyConfig]) -> None:
    """Make a model configuration available as ``model: {family: …, arch: NAME}``.

    :param create: returns a new configuration, whose class says which family it is of.
    :raises RecipeError: the family has an arch of that name.
    """
    config = create()
    if name in container.iter_keys(type(config)):
        raise RecipeError(f"arch `{name}` of the family `{family_of(config)}` is already registered; choose another name.")

    ConfigRegistrar[Any](container, type(config))(name)(create)


def register_metric(container: DependencyContainer, name: str, display_name: str, *, higher_better: bool = False) -> None:
    """Describe a metric of a criterion to logs and, as ``NAME``, to ``regime.score_metric``.

    :param name: one of ``Criterion.metric_names`` or ``SupervisedCriterion.score_names``.
    :param display_name: what logs, ``metrics/*.jsonl`` and TensorBoard call it.
    """
    descriptor = MetricDescriptor(name, display_name, 300, format_as_float, higher_better=higher_better)
    container.collection.register_instance(MetricDescriptor, descriptor)
