"""Probes as fairseq2's validation and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import fairseq2.recipe  # noqa: F401  # fairseq2.evaluator cannot be imported before it
from fairseq2.datasets import DataReader
from fairseq2.device import Device, SupportsDeviceTransfer
from fairseq2.evaluator import EvalUnit
from fairseq2.gang import Gangs
from fairseq2.metrics import Mean, MetricBag
from typing_extensions import override

from d2v_plugin.core.batch import Batch
from d2v_plugin.data.composed_readers import JoinedReader, name_sample
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.models.pooling import Pooling, resolve_layers
from d2v_plugin.probing.base import Probe, metric_name, probe_scores, weight_name
from d2v_plugin.probing.collection import FeatureCollection

WEIGHTED: Final = "weighted"

ProbedLayers = list[int] | Literal["all", "weighted"]
"""Blocks by index, from 0, or from the last one, -1; ``all`` of them by themselves, or summed up by learned weights."""


def find_layers(layers: ProbedLayers, num_layers: int) -> list[int]:
    """Find the blocks whose output probes see, counted from 0; as for :func:`resolve_layers`."""
    return resolve_layers("all" if layers == WEIGHTED else layers, num_layers)


@dataclass
class ProbeBatch(SupportsDeviceTransfer):
    """A batch that knows which split it comes from."""

    batch: Batch

    is_train: bool
    """Whether probes are fitted on it, or tested."""

    name: Callable[[int], str] = str
    """What a sample is called in reports, by its id."""

    @override
    def to(self, device: Device, *, non_blocking: bool = False) -> None:
        self.batch.to(device, non_blocking=non_blocking)


class ProbeReader(JoinedReader[ProbeBatch]):
    """Reads the split that probes are fitted on, then the one they are tested on."""

    def __init__(self, train_reader: DataReader[Batch], test_reader: DataReader[Batch]) -> None:
        super().__init__({"train": train_reader, "test": test_reader})

    @override
    def __next__(self) -> list[ProbeBatch]:
        # A reader that is through stays through until it is reset.
        for name, reader in self._readers.items():
            batches = next(reader, None)
            if batches is not None:
                return [ProbeBatch(batch, name == "train", partial(name_sample, reader, batch.modality)) for batch in batches]

        raise StopIteration


class ProbeUnit(EvalUnit[ProbeBatch]):
    """Validates a model by probes of its frozen features.

    Metrics are those of :func:`probe_scores`; they do not depend on the number of ranks that share the reading.
    """

    def __init__(
        self,
        model: EncoderModel,
        probes: Mapping[str, Probe],
        gangs: Gangs,
        *,
        layers: ProbedLayers = (-1,),  # type: ignore[assignment]
        pooling: Pooling = "mean",
        name: str = "probe",
    ) -> None:
        """
        :param model: the bare model, not its data-parallel wrapper.
        :param gangs: ``gangs.dp`` shares the reading.
        :param layers: the blocks whose output is probed.
        :param pooling: how its tokens become one vector, for the probes that want one.
        :param name: what is measured, for logs.
        :raises ValueError: the model has no such blocks.
        """
        self._name = name
        self._model = model
        self._probes = dict(probes)
        self._gang = gangs.dp
        self._layers = find_layers(layers, model.num_layers)
        self._weighted = layers == WEIGHTED
        self._collection = FeatureCollection(probes.values(), self._layers, pooling, weighted=self._weighted)
        self.scores: dict[str, float] = {}
        """What was measured last, on the first rank."""

    @override
    def prepare_metric_bag(self, metric_bag: MetricBag) -> None:
        self._collection.clear()
        name_of = weight_name if self._weighted else metric_name
        for name in self._probes:
            metric_bag.add(metric_name(name), Mean())
            for layer in self._layers if len(self._layers) > 1 else []:
                metric_bag.add(name_of(name, layer), Mean())

    @override
    def process_batch(self, batch: ProbeBatch, metric_bag: MetricBag) -> None:
        """Extract and collect the features of a batch.

        :raises ValueError: the batch has no labels.
        """
        inner, was_training = batch.batch, self._model.training
        self._model.eval()
        try:
            features = self._model.extract_features(
                inner.inputs, inner.padding_mask, modality=inner.modality, lengths=inner.lengths
            )
        finally:
            self._model.train(was_training)
        self._collection.add(features, inner, is_train=batch.is_train, name=batch.name)

    @override
    def finalize(self, metric_bag: MetricBag) -> None:
        """Bring the features of all ranks together and score the probes, on the first rank only."""
        data = self._collection.gather(self._gang)
        if self._gang.rank != 0:
            return

        self.scores = probe_scores(self._probes, data)
        for name, score in self.scores.items():
            metric_bag.get(name, Mean).update(score)

    @override
    def process_metric_values(self, values: MutableMapping[str, object]) -> None:
        # What no descriptor says how to show is shown as it is.
        values.update({name: round(score, 6) for name, score in self.scores.items()})

    @property
    @override
    def name(self) -> str:
        return self._name
