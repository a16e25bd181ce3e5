"""Training: the recipe, its configuration, the optimizer, and what is said at the end of a run."""

from __future__ import annotations

from fairseq2.metrics.formatters import format_as_float, format_as_int, format_as_percentage
from fairseq2.metrics.recorders import MetricDescriptor
from fairseq2.recipe.component import register_component
from fairseq2.runtime.dependency import DependencyContainer
from torch.optim import Optimizer

from d2v_plugin.training.optimizer import DATA2VEC_ADAMW, Data2VecAdamWConfig, create_data2vec_adamw
from d2v_plugin.training.progress_bar import register_headline

METRICS = [
    MetricDescriptor("regression_loss", "Regression Loss", 91, format_as_float),
    MetricDescriptor("cls_loss", "CLS Loss", 92, format_as_float),
    MetricDescriptor("reconstruction_loss", "Reconstruction Loss", 93, format_as_float),
    MetricDescriptor("target_deviation", "Target Deviation", 120, format_as_float),
    MetricDescriptor("prediction_deviation", "Prediction Deviation", 121, format_as_float),
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
    MetricDescriptor("local_rank", "Local Rank", 141, format_as_float),
    MetricDescriptor("local_deviation", "Local Deviation", 142, format_as_float),
    MetricDescriptor("total_skipped_updates", "Skipped Updates", 143, format_as_int),
    MetricDescriptor("samples_per_second", "Samples per Second", 810, format_as_int),
]


def register_training(container: DependencyContainer) -> None:
    """Register the optimizer, and how the metrics of this package are shown."""
    register_component(container, Optimizer, DATA2VEC_ADAMW, Data2VecAdamWConfig, create_data2vec_adamw)

    register_headline(container)
    for descriptor in METRICS:
        container.collection.register_instance(MetricDescriptor, descriptor)
