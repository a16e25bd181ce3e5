"""Training objectives, selected by ``criterion.name``."""

from __future__ import annotations

from fairseq2.recipe.component import register_component
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver

from d2v_plugin.criteria.base import Criterion
from d2v_plugin.criteria.data2vec2 import Data2Vec2Config, Data2Vec2Criterion
from d2v_plugin.data.batch import Modality
from d2v_plugin.masking import MaskSampler
from d2v_plugin.registry import create


def register_criteria(container: DependencyContainer) -> None:
    """Register the criteria of this package."""
    register_component(container, Criterion, "data2vec2", Data2Vec2Config, _create_data2vec2)


def _create_data2vec2(resolver: DependencyResolver, config: Data2Vec2Config) -> Data2Vec2Criterion:
    samplers = {}
    for modality in Modality:
        own = config.modalities.get(modality.value)
        masking = config.masking if own is None or own.masking is None else own.masking
        samplers[modality] = create(resolver, MaskSampler, masking)

    return Data2Vec2Criterion(config, samplers)
