"""One training step: the model computes its criterion's loss, the unit reports it."""

from __future__ import annotations

import time
from collections.abc import Mapping, MutableMapping
from typing import Any, final

import fairseq2.recipe  # noqa: F401  # fairseq2.trainer cannot be imported before it
import torch
from fairseq2.metrics import Mean, MetricBag, Sum
from fairseq2.trainer import TrainUnit
from torch import Tensor, nn
from typing_extensions import override

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import LossOutput, StepInfo
from d2v_plugin.criteria.base import Criterion
from d2v_plugin.data.mixture import Mixture
from d2v_plugin.training.health.update_guard import UpdateGuard


@final
class CriterionUnit(TrainUnit[Batch]):
    """Feeds batches to the model and its criterion."""

    def __init__(
        self,
        model: nn.Module,
        criterion: Criterion[Any],
        guard: UpdateGuard,
        *,
        seed: int,
        mixtures: Mapping[Modality, Mixture] | None = None,
    ) -> None:
        """
        :param model: the data-parallel wrapper: gradients are synchronised by calling it, not what it wraps.
        :param guard: is shown every update, and tells the observers.
        :param seed: the run's seed, the same on all ranks.
        :param mixtures: the datasets of which samples are counted, by modality.
        """
        self._model = model
        self._metric_names = tuple(criterion.metric_names)
        self._step = StepInfo(number=0, seed=seed)
        self._guard = guard
        self._mixtures = mixtures or {}
        self._interval_start: float | None = None
        self._num_updates = self._num_skipped = 0

    @property
    def step_nr(self) -> int:
        """The update being computed, from 1."""
        return self._step.number

    @override
    def prepare_metric_bag(self, metric_bag: MetricBag) -> None:
        metric_bag.add("loss", Mean())
        for name in self._metric_names:
            metric_bag.add(name, Mean())
        metric_bag.add("num_examples", Sum())
        metric_bag.add("total_num_examples", Sum())
        for name in self._dataset_names():
            metric_bag.add(name, Sum())
        self._guard.prepare_metric_bag(metric_bag)

    def _dataset_names(self) -> list[str]:
        return list(dict.fromkeys(f"samples/{name}" for mixture in self._mixtures.values() for name in mixture.names))

    @override
    def set_step_nr(self, step_nr: int) -> None:
        self._step = StepInfo(number=step_nr, seed=self._step.seed)
        self._guard.before_update(step_nr)
        self._num_updates += 1
        if self._interval_start is None:
            self._interval_start = time.perf_counter()

    @override
    def process_batch(self, batch: Batch, metric_bag: MetricBag) -> tuple[Tensor, int]:
        output: LossOutput = self._model(batch, self._step)

        # One NaN would be all that is left of an interval.
        is_finite = output.loss.detach().isfinite()

        def update(name: str, value: Tensor, weight: int = 1) -> None:
            if value.device == is_finite.device:  # numbers that the host knows are finite
                value = torch.where(is_finite, value, 0.0)
            metric_bag.get(name, Mean).update(value, weight=is_finite * weight)

        update("loss", output.loss.detach() / output.num_targets, output.num_targets)
        for name in self._metric_names:
            update(name, output.metrics[name])
        metric_bag.get("num_examples", Sum).update(batch.num_examples)
        metric_bag.get("total_num_examples", Sum).update(batch.num_examples)

        if (mixture := self._mixtures.get(batch.modality)) is not None:
            for name, count in zip(mixture.names, mixture.count(batch.ids), strict=True):
                metric_bag.get(f"samples/{name}", Sum).update(count)

        return self._guard.after_forward(batch, output), output.num_targets

    @override
    def process_metric_values(self, values: MutableMapping[str, object]) -> None:
        """Called by rank 0 when metrics are published, with the values of all ranks."""
        for name in self._metric_names:  # plain numbers are shown well also where no descriptor says how
            values[name] = float(values[name])  # type: ignore[arg-type]

        for name in self._dataset_names():
            values[name] = int(values[name])  # type: ignore[call-overload]

        if self._guard.num_skipped - self._num_skipped == self._num_updates:
            for name in ("loss", "grad_norm", *self._metric_names):  # means of nothing
                del values[name]
        self._num_updates, self._num_skipped = 0, self._guard.num_skipped
        for observer in self._guard.observers:
            observer.add_metrics(values)

        # Validation happens between publishing and the next step, so intervals contain training only.
        num_examples = values["num_examples"]
        if self._interval_start is not None and isinstance(num_examples, Tensor):
            values["samples_per_second"] = float(num_examples) / (time.perf_counter() - self._interval_start)
        self._interval_start = None
