"""Registration of everything this package brings: one table for each kind of thing that a recipe may name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fairseq2.composition import register_dataset_family
from fairseq2.metrics.formatters import format_as_float, format_as_int, format_as_percentage
from fairseq2.metrics.recorders import MetricDescriptor
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver
from torch.optim import Optimizer

from d2v_plugin.core.batch import Modality
from d2v_plugin.core.registry import create, register
from d2v_plugin.criteria.base import Criterion
from d2v_plugin.criteria.baselines.last_layer import LastLayerConfig
from d2v_plugin.criteria.baselines.mae import MaeConfig, MaeCriterion
from d2v_plugin.criteria.baselines.masked_lm import MaskedLMConfig, MaskedLMCriterion
from d2v_plugin.criteria.baselines.wav2vec2 import Wav2Vec2Config, Wav2Vec2Criterion
from d2v_plugin.criteria.data2vec1.criterion import Data2Vec1Config, Data2Vec1Criterion
from d2v_plugin.criteria.data2vec2.criterion import Data2Vec2Config, Data2Vec2Criterion
from d2v_plugin.criteria.supervised.classification import ClassificationConfig, ClassificationCriterion
from d2v_plugin.criteria.supervised.ctc import CtcConfig, CtcCriterion
from d2v_plugin.criteria.supervised.tagging import AudioTaggingConfig, AudioTaggingCriterion
from d2v_plugin.data.dataset import (
    AudioManifest,
    ImageManifest,
    ManifestConfig,
    MultimodalConfig,
    MultimodalManifests,
    TextManifest,
)
from d2v_plugin.data.sentences import Sentences, SentencesConfig
from d2v_plugin.masking.base import MaskSampler, MaskSection
from d2v_plugin.masking.random_blocks import (
    BlockMaskConfig,
    BlockMaskSampler,
    InverseBlockMaskSampler,
    RandomMaskConfig,
    RandomMaskSampler,
)
from d2v_plugin.masking.spans_and_beit import BeitBlockMaskConfig, BeitBlockMaskSampler, SpanMaskConfig, SpanMaskSampler
from d2v_plugin.models.families import register_models
from d2v_plugin.probing.attentive import AttentiveProbe, AttentiveProbeConfig
from d2v_plugin.probing.base import register_probe
from d2v_plugin.probing.knn import KnnProbe, KnnProbeConfig
from d2v_plugin.probing.linear import LinearProbe, LinearProbeConfig
from d2v_plugin.tasks.audio import AudioPretrainingTask
from d2v_plugin.tasks.audio_classification import AudioClassificationConfig, AudioClassificationTask
from d2v_plugin.tasks.audio_settings import AudioPretrainingConfig
from d2v_plugin.tasks.base import Task
from d2v_plugin.tasks.image import ImagePretrainingConfig, ImagePretrainingTask
from d2v_plugin.tasks.image_classification import ImageClassificationConfig, ImageClassificationTask
from d2v_plugin.tasks.multimodal import MultimodalPretrainingConfig, create_multimodal_task
from d2v_plugin.tasks.speech_recognition import SpeechRecognitionConfig, SpeechRecognitionTask
from d2v_plugin.tasks.text import TextPretrainingConfig, TextPretrainingTask
from d2v_plugin.tasks.text_classification import TextClassificationConfig, TextClassificationTask
from d2v_plugin.training.optimizer import DATA2VEC_ADAMW, Data2VecAdamWConfig, create_data2vec_adamw
from d2v_plugin.weights.library import register_cards

METRICS = [
    MetricDescriptor("regression_loss", "Regression Loss", 91, format_as_float),
    MetricDescriptor("cls_loss", "CLS Loss", 92, format_as_float),
    MetricDescriptor("reconstruction_loss", "Reconstruction Loss", 93, format_as_float),
    MetricDescriptor("target_deviation", "Target Deviation", 120, format_as_float),
    MetricDescriptor("prediction_deviation", "Prediction Deviation", 121, format_as_float),
    MetricDescriptor("explained_variance", "Explained Variance", 121, format_as_float, higher_better=True),
    MetricDescriptor("masked_fraction", "Masked Fraction", 122, format_as_percentage),
    MetricDescriptor("ema_decay", "EMA Decay", 123, format_as_float),
    MetricDescriptor("accuracy", "Accuracy", 130, format_as_float, higher_better=True),
    MetricDescriptor("top5_accuracy", "Top-5 Accuracy", 131, format_as_float, higher_better=True),
    MetricDescriptor("f1", "F1", 132, format_as_float, higher_better=True),
    MetricDescriptor("accuracy_and_f1", "Mean of Accuracy and F1", 133, format_as_float, higher_better=True),
    MetricDescriptor("matthews", "Matthews Correlation", 134, format_as_float, higher_better=True),
    MetricDescriptor("pearson", "Pearson Correlation", 135, format_as_float, higher_better=True),
    MetricDescriptor("spearman", "Spearman Correlation", 136, format_as_float, higher_better=True),
    MetricDescriptor("pearson_and_spearman", "Mean of Pearson and Spearman", 137, format_as_float, higher_better=True),
    MetricDescriptor("mean_average_precision", "Mean Average Precision", 138, format_as_float, higher_better=True),
    MetricDescriptor("cer", "Character Error Rate (CER)", 201, format_as_float),  # fairseq2 has "wer"
    MetricDescriptor("target_rank", "Target Rank", 140, format_as_float),
    MetricDescriptor("target_rankme", "Target RankMe", 140, format_as_float),
    MetricDescriptor("target_alpha_req", "Target Alpha-ReQ", 140, format_as_float),
    MetricDescriptor("prediction_lidar", "Prediction LiDAR", 140, format_as_float),
    MetricDescriptor("local_rank", "Local Rank", 141, format_as_float),
    MetricDescriptor("local_deviation", "Local Deviation", 142, format_as_float),
    MetricDescriptor("total_skipped_updates", "Skipped Updates", 143, format_as_int),
    MetricDescriptor("samples_per_second", "Samples per Second", 810, format_as_int),
]


def register_everything(container: DependencyContainer) -> None:
    """Register models, data, tasks, mask samplers, criteria, probes, the optimizer and the metrics of this package."""
    register_models(container)
    register_cards(container)
    register_data(container)
    register_criteria(container)
    register_probes(container)

    register(container, Optimizer, DATA2VEC_ADAMW, create_data2vec_adamw, Data2VecAdamWConfig, with_resolver=True)
    for descriptor in METRICS:
        container.collection.register_instance(MetricDescriptor, descriptor)


def register_data(container: DependencyContainer) -> None:
    """Register dataset families and tasks."""
    register_dataset_family(container, "image_manifest", ImageManifest, ManifestConfig, opener=ImageManifest.open)
    register_dataset_family(container, "audio_manifest", AudioManifest, ManifestConfig, opener=AudioManifest.open)
    register_dataset_family(container, "text_manifest", TextManifest, ManifestConfig, opener=TextManifest.open)
    register_dataset_family(container, "sentences", Sentences, SentencesConfig, opener=Sentences.open)
    register_dataset_family(
        container, "multimodal_manifest", MultimodalManifests, MultimodalConfig, opener=MultimodalManifests.open
    )

    register(container, Task, "audio_pretraining", AudioPretrainingTask, AudioPretrainingConfig)
    register(container, Task, "audio_classification", AudioClassificationTask, AudioClassificationConfig)
    register(container, Task, "speech_recognition", SpeechRecognitionTask, SpeechRecognitionConfig)
    register(container, Task, "image_classification", ImageClassificationTask, ImageClassificationConfig)
    register(container, Task, "image_pretraining", ImagePretrainingTask, ImagePretrainingConfig)
    register(container, Task, "text_pretraining", TextPretrainingTask, TextPretrainingConfig)
    register(container, Task, "text_classification", TextClassificationTask, TextClassificationConfig)
    register(container, Task, "multimodal_pretraining", create_multimodal_task, MultimodalPretrainingConfig, with_resolver=True)


def register_criteria(container: DependencyContainer) -> None:
    """Register mask samplers and criteria."""
    register(container, MaskSampler, "random", RandomMaskSampler, RandomMaskConfig)
    register(container, MaskSampler, "block", BlockMaskSampler, BlockMaskConfig)
    register(container, MaskSampler, "inverse_block", InverseBlockMaskSampler, BlockMaskConfig)
    register(container, MaskSampler, "span", SpanMaskSampler, SpanMaskConfig)
    register(container, MaskSampler, "beit_block", BeitBlockMaskSampler, BeitBlockMaskConfig)

    register(container, Criterion, "data2vec2", _create_data2vec2, Data2Vec2Config, with_resolver=True)
    register(container, Criterion, "data2vec1", _with_sampler(Data2Vec1Criterion), Data2Vec1Config, with_resolver=True)
    register(container, Criterion, "last_layer_regression", _create_data2vec2, LastLayerConfig, with_resolver=True)
    register(container, Criterion, "mae", _with_sampler(MaeCriterion), MaeConfig, with_resolver=True)
    register(container, Criterion, "masked_lm", _with_sampler(MaskedLMCriterion), MaskedLMConfig, with_resolver=True)
    register(container, Criterion, "wav2vec2", _with_sampler(Wav2Vec2Criterion), Wav2Vec2Config, with_resolver=True)

    register(container, Criterion, "classification", ClassificationCriterion, ClassificationConfig)
    register(container, Criterion, "ctc", CtcCriterion, CtcConfig)
    register(container, Criterion, "audio_tagging", AudioTaggingCriterion, AudioTaggingConfig)


def _create_data2vec2(resolver: DependencyResolver, config: Data2Vec2Config) -> Data2Vec2Criterion:
    return Data2Vec2Criterion(
        config, {modality: create(resolver, MaskSampler, config.of(modality).masking) for modality in Modality}
    )


def _with_sampler(criterion: Callable[[Any, MaskSampler], Criterion[Any]]) -> Callable[[DependencyResolver, Any], Criterion[Any]]:
    """Make a factory that also builds the mask sampler that the configuration names."""

    def create_criterion(resolver: DependencyResolver, config: Any) -> Criterion[Any]:
        masking: MaskSection = config.masking

        return criterion(config, create(resolver, MaskSampler, masking))

    return create_criterion


def register_probes(container: DependencyContainer) -> None:
    """Register probes and their metrics."""
    register_probe(container, "knn", "Probe k-NN Accuracy", KnnProbe, KnnProbeConfig)
    register_probe(container, "linear", "Probe Linear Accuracy", LinearProbe, LinearProbeConfig)
    register_probe(container, "attentive", "Probe Attentive Accuracy", AttentiveProbe, AttentiveProbeConfig)
