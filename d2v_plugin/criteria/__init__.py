"""Training objectives, selected by ``criterion.name``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fairseq2.recipe.component import ComponentFactory, register_component
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver

from d2v_plugin.core.batch import Modality
from d2v_plugin.core.registry import create, register
from d2v_plugin.criteria.base import Criterion
from d2v_plugin.criteria.baselines.last_layer import LastLayerConfig
from d2v_plugin.criteria.baselines.mae import MaeConfig, MaeCriterion
from d2v_plugin.criteria.baselines.masked_lm import MaskedLMConfig, MaskedLMCriterion
from d2v_plugin.criteria.baselines.wav2vec2 import Wav2Vec2Config, Wav2Vec2Criterion
from d2v_plugin.criteria.data2vec1.criterion import register_data2vec1
from d2v_plugin.criteria.data2vec2.criterion import Data2Vec2Config, Data2Vec2Criterion
from d2v_plugin.criteria.supervised.classification import ClassificationConfig, ClassificationCriterion
from d2v_plugin.criteria.supervised.ctc import CtcConfig, CtcCriterion
from d2v_plugin.criteria.supervised.tagging import AudioTaggingConfig, AudioTaggingCriterion
from d2v_plugin.masking.base import MaskSampler
from d2v_plugin.masking.published import register_mask_samplers_v1


def register_criteria(container: DependencyContainer) -> None:
    """Register the criteria of this package."""
    register_component(container, Criterion, "data2vec2", Data2Vec2Config, _create_data2vec2)
    register_data2vec1(container)
    register_mask_samplers_v1(container)
    _register_comparisons(container)
    register(container, Criterion, "classification", ClassificationCriterion, ClassificationConfig)
    register(container, Criterion, "ctc", CtcCriterion, CtcConfig)
    register(container, Criterion, "audio_tagging", AudioTaggingCriterion, AudioTaggingConfig)


def _create_data2vec2(resolver: DependencyResolver, config: Data2Vec2Config) -> Data2Vec2Criterion:
    samplers = {}
    for modality in Modality:
        own = config.modalities.get(modality.value)
        masking = config.masking if own is None or own.masking is None else own.masking
        samplers[modality] = create(resolver, MaskSampler, masking)

    return Data2Vec2Criterion(config, samplers)


def _register_comparisons(container: DependencyContainer) -> None:
    """Register the objectives to compare with."""
    register_component(container, Criterion, "last_layer_regression", LastLayerConfig, _create_data2vec2)
    register_component(container, Criterion, "mae", MaeConfig, _with_sampler(MaeCriterion))
    register_component(container, Criterion, "masked_lm", MaskedLMConfig, _with_sampler(MaskedLMCriterion))
    register_component(container, Criterion, "wav2vec2", Wav2Vec2Config, _with_sampler(Wav2Vec2Criterion))


ConfigT = TypeVar("ConfigT", MaeConfig, MaskedLMConfig, Wav2Vec2Config)


def _with_sampler(
    criterion: Callable[[ConfigT, MaskSampler], Criterion[Any]],
) -> ComponentFactory[Criterion[Any], ConfigT]:
    """A factory that also builds the mask sampler that the configuration names."""

    def create_criterion(resolver: DependencyResolver, config: ConfigT) -> Criterion[Any]:
        return criterion(config, create(resolver, MaskSampler, config.masking))

    return create_criterion
