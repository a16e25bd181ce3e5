"""Probes: how well simple classifiers do on frozen features.

During pre-training :class:`ProbeUnit` runs as fairseq2's validation; :func:`probe_scores` serves any features, for instance
those of a randomly initialised encoder or raw pixels. No probe draws random numbers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar, cast

import fairseq2.recipe  # noqa: F401  # fairseq2.evaluator cannot be imported before it
import torch
from fairseq2.datasets import DataReader
from fairseq2.device import Device, SupportsDeviceTransfer
from fairseq2.evaluator import EvalUnit
from fairseq2.gang import Gangs
from fairseq2.metrics import Mean, MetricBag
from fairseq2.metrics.formatters import format_as_float
from fairseq2.metrics.recorders import MetricDescriptor
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver
from fairseq2.utils.validation import Validatable, ValidationResult
from torch import Tensor
from torch.nn.functional import cross_entropy, linear, normalize, one_hot
from typing_extensions import Self, override

from d2v_plugin.data.batch import Batch
from d2v_plugin.models.base import EncoderModel, Features
from d2v_plugin.registry import ComponentSection, create, register

ConfigT = TypeVar("ConfigT")

# Test samples that are compared with all training samples at a time.
KNN_CHUNK_SIZE = 1024

LINEAR_MAX_ITERATIONS = 500


class Probe(ABC):
    """A classifier of frozen features; registered by name."""

    def score(self, train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor) -> float:
        """Fit on one split, predict the other; both are standardised with the statistics of the former.

        Computes in float64 on the features' device, which autocast and TF32 leave alone.

        :param train_x: (N, D) features.
        :param train_y: (N,) int64 classes; any integers.
        :returns: accuracy between 0 and 1; NaN if a feature is not finite.
        :raises ValueError: a split is empty.
        """
        if len(train_x) == 0 or len(test_x) == 0:
            raise ValueError(f"A probe needs samples in both splits, but there are {len(train_x)} and {len(test_x)}.")

        # Validation runs in inference mode, where no gradient can be computed.
        with torch.inference_mode(False), torch.no_grad():
            train_x, test_x = train_x.to(torch.float64), test_x.to(torch.float64)

            if not (train_x.isfinite().all() and test_x.isfinite().all()):
                return math.nan

            classes, train_y = train_y.unique(return_inverse=True)

            mean, std = train_x.mean(dim=0), train_x.std(dim=0, correction=0)
            # What is constant but for rounding stays as it is.
            std = torch.where(std > 1e-6 * mean.abs(), std, 1.0)

            predicted = classes[self.predict((train_x - mean) / std, train_y, (test_x - mean) / std)]

            return float((predicted == test_y).double().mean())

    @abstractmethod
    def predict(self, train_x: Tensor, train_y: Tensor, test_x: Tensor) -> Tensor:
        """Predict the classes of a split, without gradients.

        :param train_x: (N, D) float64, standardised.
        :param train_y: (N,) int64, from 0 to the number of classes - 1.
        :returns: like ``train_y``, for ``test_x``.
        """


@dataclass(kw_only=True)
class KnnProbeConfig(Validatable):
    k: int = 5
    """How many of the nearest training samples vote; a tie goes to the class that comes first."""

    metric: Literal["euclidean", "cosine"] = "euclidean"
    """What is near: a small distance or a small angle."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.k < 1:
            result.add_error(f"`k` must be at least 1, but is {self.k}.")

        return result


class KnnProbe(Probe):
    """Majority vote of the nearest training samples."""

    def __init__(self, config: KnnProbeConfig) -> None:
        self.config = config

    @override
    def predict(self, train_x: Tensor, train_y: Tensor, test_x: Tensor) -> Tensor:
        if self.config.metric == "cosine":
            # At equal lengths the smallest angle is the smallest distance.
            train_x, test_x = normalize(train_x), normalize(test_x)

        k, num_classes = min(self.config.k, len(train_x)), int(train_y.max()) + 1

        squares = train_x.square().sum(dim=1)

        def vote(x: Tensor) -> Tensor:
            # Squared distances up to a constant per test sample: (n, D), (N, D) -> (n, N)
            distances = torch.addmm(squares, x, train_x.T, alpha=-2.0)
            nearest = distances.topk(k, dim=1, largest=False).indices

            # (n, k) -> (n, k, C) -> (n)
            return one_hot(train_y[nearest], num_classes).sum(dim=1).argmax(dim=1)

        return torch.cat([vote(x) for x in torch.split(test_x, KNN_CHUNK_SIZE)])


@dataclass(kw_only=True)
class LinearProbeConfig(Validatable):
    l2: float = 1.0
    """Weight of half the squared norm of the weights (not of the biases) beside the sum of the losses: scikit-learn's 1 / C."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.l2 < 0.0:
            result.add_error(f"`l2` must not be negative, but is {self.l2}.")

        return result


class LinearProbe(Probe):
    """Multinomial logistic regression, fitted to convergence."""

    def __init__(self, config: LinearProbeConfig) -> None:
        self.config = config

    @override
    def predict(self, train_x: Tensor, train_y: Tensor, test_x: Tensor) -> Tensor:
        num_classes = int(train_y.max()) + 1

        weight = train_x.new_zeros((num_classes, train_x.size(1)), requires_grad=True)
        bias = train_x.new_zeros(num_classes, requires_grad=True)

        optimizer = torch.optim.LBFGS(
            [weight, bias],
            max_iter=LINEAR_MAX_ITERATIONS,
            tolerance_grad=1e-6,
            tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )

        def compute_loss() -> Tensor:
            optimizer.zero_grad()
            penalty = self.config.l2 / 2 / len(train_x) * weight.square().sum()
            loss = cross_entropy(linear(train_x, weight, bias), train_y) + penalty
            loss.backward()

            return loss

        with torch.enable_grad():
            optimizer.step(compute_loss)

        return linear(test_x, weight, bias).argmax(dim=1)


@dataclass(kw_only=True)
class ProbeSection(ComponentSection):
    """Selects a probe."""

    base: ClassVar[type[Probe]] = Probe

    name: str = "linear"


def register_probes(container: DependencyContainer) -> None:
    """Register the probes of this module."""
    register_probe(container, "knn", "Probe k-NN Accuracy", KnnProbe, KnnProbeConfig)
    register_probe(container, "linear", "Probe Linear Accuracy", LinearProbe, LinearProbeConfig)


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


def metric_name(probe: str) -> str:
    """The metric of the probe with this name."""
    return f"probe_{probe}"


def probe_scores(
    probes: Mapping[str, Probe], train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor
) -> dict[str, float]:
    """Score each probe on the same features.

    :param train_x: (N, D), with the classes ``train_y`` (N,); so the test split.
    :returns: accuracies between 0 and 1 by metric name: ``probe_knn``, ``probe_linear``, …
    """
    return {metric_name(name): probe.score(train_x, train_y, test_x, test_y) for name, probe in probes.items()}


Pooling = Literal["mean", "statistics"]
"""How tokens become one vector: their mean, or mean and standard deviation.

Targets that are normalised over time (``instance_norm_layers``) have mean zero in every utterance, so what a trained model
knows of an utterance is not in the mean of its last layers: speech wants ``statistics``.
"""


def pool_features(features: Features, layer: int = -1, pooling: Pooling = "mean") -> Tensor:
    """Pool the valid positions of a block's output: (N, S, D) -> (N, D) float32, or (N, 2·D) with ``statistics``.

    :param layer: index into ``features.layers``; negative ones count from the last block.
    :param pooling: see :data:`Pooling`.
    :raises ValueError: there is no such block.
    """
    num_layers = len(features.layers)

    if not -num_layers <= layer < num_layers:
        raise ValueError(f"`layer` must be between {-num_layers} and {num_layers - 1}, but is {layer}.")

    x = features.layers[layer].to(torch.float32)

    # Padded positions may hold anything, infinities included.
    padding_mask = features.padding_mask
    valid = torch.ones_like(x[:, :, :1], dtype=torch.bool) if padding_mask is None else ~padding_mask[:, :, None]
    num_valid = valid.sum(dim=1)
    mean = x.masked_fill(~valid, 0.0).sum(dim=1) / num_valid
    if pooling == "mean":
        return mean

    variance = (x - mean[:, None]).masked_fill(~valid, 0.0).square().sum(dim=1) / num_valid

    return torch.cat([mean, variance.sqrt()], dim=-1)


@dataclass
class ProbeBatch(SupportsDeviceTransfer):
    """A batch that knows which split it comes from."""

    batch: Batch

    is_train: bool
    """Whether probes are fitted on it, or tested."""

    @override
    def to(self, device: Device, *, non_blocking: bool = False) -> None:
        self.batch.to(device, non_blocking=non_blocking)


class ProbeReader(DataReader[ProbeBatch]):
    """Reads the split that probes are fitted on, then the one they are tested on."""

    def __init__(self, train_reader: DataReader[Batch], test_reader: DataReader[Batch]) -> None:
        self._readers = (train_reader, test_reader)

    @override
    def __iter__(self) -> Self:
        return self

    @override
    def __next__(self) -> list[ProbeBatch]:
        # A reader that is through stays through until it is reset.
        for reader, is_train in zip(self._readers, (True, False), strict=True):
            batches = next(reader, None)
            if batches is not None:
                return [ProbeBatch(batch, is_train) for batch in batches]

        raise StopIteration

    @override
    def reset(self) -> None:
        for reader in self._readers:
            reader.reset()

    @override
    def state_dict(self) -> dict[str, object]:
        return {name: reader.state_dict() for name, reader in zip(("train", "test"), self._readers, strict=True)}

    @override
    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        for name, reader in zip(("train", "test"), self._readers, strict=True):
            reader.load_state_dict(cast("dict[str, object]", state_dict[name]))

    @property
    @override
    def num_accumulate(self) -> int:
        return 1


class ProbeUnit(EvalUnit[ProbeBatch]):
    """Validates a model by probes of its frozen features.

    Metrics are ``probe_<name>``; they do not depend on the number of ranks that share the reading.
    """

    def __init__(
        self,
        model: EncoderModel,
        probes: Mapping[str, Probe],
        gangs: Gangs,
        *,
        layer: int = -1,
        pooling: Pooling = "mean",
    ) -> None:
        """
        :param model: the bare model, not its data-parallel wrapper.
        :param gangs: ``gangs.dp`` shares the reading.
        :param layer: the block whose output is probed; see :func:`pool_features`.
        :param pooling: how its tokens are pooled; see :func:`pool_features`.
        """
        self._model = model
        self._probes = dict(probes)
        self._gang = gangs.dp
        self._layer = layer
        self._pooling = pooling
        self._features: list[Tensor] = []
        self._rows: list[Tensor] = []

    @override
    def prepare_metric_bag(self, metric_bag: MetricBag) -> None:
        self._clear()

        for name in self._probes:
            metric_bag.add(metric_name(name), Mean())

    @override
    def process_batch(self, batch: ProbeBatch, metric_bag: MetricBag) -> None:
        """Extract and collect the features of a batch.

        :raises ValueError: the batch has no labels.
        """
        inner = batch.batch

        if inner.labels is None:
            raise ValueError("Probes need labels, but the manifest of a probed split has none.")

        was_training = self._model.training

        self._model.eval()
        try:
            features = self._model.extract_features(inner.inputs, inner.padding_mask, modality=inner.modality)
        finally:
            self._model.train(was_training)

        # (N, 3), sorted by split and sample later on
        is_train = torch.full_like(inner.ids, batch.is_train)

        self._features.append(pool_features(features, self._layer, self._pooling))
        self._rows.append(torch.stack([is_train, inner.ids, inner.labels.to(inner.ids.dtype)], dim=1))

    @override
    def finalize(self, metric_bag: MetricBag) -> None:
        """Bring the features of all ranks together and score the probes, on the first rank only."""
        features, rows = self._gather()

        self._clear()

        if self._gang.rank != 0:
            return

        # One order whatever rank read a sample, so that sums are rounded the same way.
        order = rows[:, 1].argsort(stable=True)
        features, rows = features[order], rows[order]

        is_train, labels = rows[:, 0] == 1, rows[:, 2]

        train, test = ((features[chosen], labels[chosen]) for chosen in (is_train, ~is_train))

        scores = probe_scores(self._probes, *train, *test)

        for name, score in scores.items():
            metric_bag.get(name, Mean).update(score)

    def _gather(self) -> tuple[Tensor, Tensor]:
        """Concatenate what all ranks collected: (N, D) features, (N, 3) rows."""
        gang, device = self._gang, self._gang.device

        # A rank may have read nothing, and then does not know D.
        dim = self._features[0].size(1) if self._features else 0
        features = torch.cat([torch.empty((0, dim), device=device), *self._features])
        rows = torch.cat([torch.empty((0, 3), dtype=torch.int64, device=device), *self._rows])

        sizes = [torch.empty(2, dtype=torch.int64, device=device) for _ in range(gang.size)]
        gang.all_gather_to_list(sizes, torch.tensor(features.shape, device=device))

        num_rows, dim = torch.stack(sizes).amax(dim=0).tolist()

        def gather(x: Tensor, width: int) -> Tensor:
            padded = x.new_zeros((num_rows, width))
            padded[: x.size(0), : x.size(1)] = x
            parts = [torch.empty_like(padded) for _ in range(gang.size)]
            gang.all_gather_to_list(parts, padded)

            return torch.cat([part[: int(size[0])] for part, size in zip(parts, sizes, strict=True)])

        return gather(features, dim), gather(rows, 3)

    def _clear(self) -> None:
        self._features, self._rows = [], []

    @property
    @override
    def name(self) -> str:
        return "probe"
