"""Base of all probes: the features that they see, their scores and their names."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import torch
from fairseq2.metrics.formatters import format_as_float
from fairseq2.metrics.recorders import MetricDescriptor
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver
from torch import Tensor
from typing_extensions import override

from d2v_plugin.core.registry import ComponentSection, create, register

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True)
class ProbeData:
    """The features of a split at one layer."""

    x: Tensor
    """(N, D): one vector per sample, pooled."""

    y: Tensor
    """(N,) int64: classes; any integers."""

    tokens: Sequence[Tensor] = ()
    """N x (S_n, D): all tokens of each sample; empty unless a probe asks for them."""

    num_layers: int = 1
    """L: with more than one the vectors of all layers lie side by side, (N, L·D), and the probe learns how much each counts."""

    def finite(self) -> ProbeData:
        """The samples whose features are all finite numbers."""
        kept = self.x.isfinite().all(dim=1)
        if self.tokens:
            kept &= torch.stack([sample.isfinite().all() for sample in self.tokens])
        if bool(kept.all()):
            return self
        tokens = [sample for sample, is_kept in zip(self.tokens, kept.tolist(), strict=True) if is_kept] if self.tokens else ()

        return ProbeData(self.x[kept], self.y[kept], tokens, self.num_layers)


class Probe(ABC):
    """A classifier of frozen features; registered by name."""

    needs_tokens: ClassVar[bool] = False
    """Whether it looks at all tokens of a sample (:attr:`ProbeData.tokens`) rather than at one vector."""

    weighs_layers: ClassVar[bool] = False
    """Whether it can learn how much each of several layers counts (:attr:`ProbeData.num_layers`)."""

    layer_weights: Sequence[float] = ()
    """What it learned last: shares that sum to 1; empty if there was one layer."""

    def score(self, train: ProbeData, test: ProbeData) -> float:
        """Fit on one split, predict the other.

        :returns: accuracy between 0 and 1, without the samples whose features are not finite; NaN if none is left.
        :raises ValueError: a split is empty.
        """
        self.layer_weights = ()
        if len(train.x) == 0 or len(test.x) == 0:
            raise ValueError(f"A probe needs samples in both splits, but there are {len(train.x)} and {len(test.x)}.")
        train, test = train.finite(), test.finite()
        if len(train.x) == 0 or len(test.x) == 0:
            return math.nan

        # Validation runs in inference mode, where no gradient can be computed, and perhaps under autocast.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(train.x.device.type, enabled=False):
            classes, train_y = train.y.unique(return_inverse=True)
            predicted = classes[self.predict(replace(train, y=train_y), test)]

            return float((predicted == test.y).double().mean())

    @abstractmethod
    def predict(self, train: ProbeData, test: ProbeData) -> Tensor:
        """Predict the classes of a split; called without gradients and without autocast.

        :param train: with classes from 0 to their number - 1.
        :param test: its classes must not be looked at.
        :returns: (N,) int64, like ``train.y``, for ``test``.
        """


class VectorProbe(Probe):
    """A classifier of one vector per sample, in float64, which TF32 leaves alone."""

    num_layers = 1

    @override
    def predict(self, train: ProbeData, test: ProbeData) -> Tensor:
        train_x, test_x = train.x.to(torch.float64), test.x.to(torch.float64)
        mean, std = measure_scale(train_x)

        self.num_layers = train.num_layers

        return self.predict_vectors((train_x - mean) / std, train.y, (test_x - mean) / std)

    @abstractmethod
    def predict_vectors(self, train_x: Tensor, train_y: Tensor, test_x: Tensor) -> Tensor:
        """As :meth:`predict`, for features (N, D) that are standardized with the statistics of the training split.

        With several layers, (N, L·D), ``self.num_layers`` is their number.
        """


def mix_layers(x: Tensor, logits: Tensor) -> Tensor:
    """Sum up layers by learned shares, as SUPERB does: (…, L·D) -> (…, D).

    :param logits: (L,) whose softmax is the share of each.
    """
    # (…, L, D), (L, 1)
    layers: Tensor = x.unflatten(-1, (len(logits), -1))

    return (layers * logits.softmax(0)[:, None]).sum(dim=-2)


def measure_scale(x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and deviation of each dimension, (N, D) -> 2 × (D,); what is constant but for rounding has deviation 1."""
    mean, std = x.mean(dim=0), x.std(dim=0, correction=0)

    return mean, torch.where(std > 1e-6 * mean.abs(), std, 1.0)


@dataclass(kw_only=True)
class ProbeSection(ComponentSection):
    """Selects a probe."""

    base: ClassVar[type[Probe]] = Probe

    name: str = "linear"


def register_probe(
    container: DependencyContainer, name: str, display_name: str, factory: Callable[[ConfigT], Probe], config_kls: type[ConfigT]
) -> None:
    """Register a probe, and describe its metric ``probe_<name>`` to logs and to ``regime.score_metric``."""
    register(container, Probe, name, factory, config_kls)
    descriptor = MetricDescriptor(metric_name(name), display_name, 200, format_as_float, higher_better=True)
    container.collection.register_instance(MetricDescriptor, descriptor)


def create_probes(resolver: DependencyResolver, sections: Iterable[ProbeSection]) -> dict[str, Probe]:
    """Build the probes that a recipe names, by name."""
    return {section.name: create(resolver, Probe, section) for section in sections}


def metric_name(probe: str, layer: int | None = None) -> str:
    """Name the metric of a probe, at one of several layers or at the best of them."""
    return f"probe_{probe}" if layer is None else f"probe_{probe}_layer{layer}"


def weight_name(probe: str, layer: int) -> str:
    """Name the share that a layer has in what a probe sees."""
    return f"{metric_name(probe, layer)}_weight"


def probe_scores(probes: Mapping[str, Probe], data: Mapping[int, tuple[ProbeData, ProbeData]]) -> dict[str, float]:
    """Score each probe at each layer.

    :param data: the training and the test split, by layer.
    :returns: accuracies between 0 and 1 by metric name: ``probe_knn``, ``probe_linear``, …; of several layers also
        ``probe_knn_layer0``, …, and ``probe_knn`` is that of the best one. Of layers that are weighed together there is one
        accuracy, and the weights: ``probe_linear_layer0_weight``, ….
    """
    scores: dict[str, float] = {}
    for name, probe in probes.items():
        # A split of which nothing could be read says nothing.
        by_layer = {
            layer: probe.score(train, test) if len(train.x) and len(test.x) else math.nan for layer, (train, test) in data.items()
        }
        finite = [score for score in by_layer.values() if not math.isnan(score)]
        scores[metric_name(name)] = max(finite, default=math.nan)
        if len(data) > 1:
            scores |= {metric_name(name, layer): score for layer, score in by_layer.items()}
        scores |= {weight_name(name, layer): weight for layer, weight in enumerate(probe.layer_weights if finite else ())}

    return scores


def overall_metrics(metrics: Iterable[str]) -> list[str]:
    """List the metrics that are not those of one of several layers, each once, in the order in which they appear."""
    names = dict.fromkeys(metrics)

    return [name for name in names if not any(name.startswith(f"{other}_layer") for other in names)]
