"""One training step: the model computes its criterion's loss, the unit reports it."""

from __future__ import annotations

import math
import time
from collections.abc import MutableMapping
from typing import Any, final

from fairseq2.metrics import Mean, MetricBag, Sum
from fairseq2.recipe.error import RecipeError
from fairseq2.trainer import TrainUnit
from torch import Tensor, nn
from typing_extensions import override

from d2v_plugin.criteria.base import Criterion, LossOutput, StepInfo
from d2v_plugin.data.batch import Batch


@final
class CriterionUnit(TrainUnit[Batch]):
    """Feeds batches to the model and its criterion."""

    def __init__(self, model: nn.Module, criterion: Criterion[Any], *, seed: int) -> None:
        """
        :param model: the data-parallel wrapper: gradients are synchronised by calling it, not what it wraps.
        :param seed: the run's seed, the same on all ranks.
        """
        self._model = model
        self._metric_names = tuple(criterion.metric_names)
        self._step = StepInfo(number=0, seed=seed)
        self._interval_start: float | None = None

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

    @override
    def set_step_nr(self, step_nr: int) -> None:
        self._step = StepInfo(number=step_nr, seed=self._step.seed)
        if self._interval_start is None:
            self._interval_start = time.perf_counter()

    @override
    def process_batch(self, batch: Batch, metric_bag: MetricBag) -> tuple[Tensor, int]:
        output: LossOutput = self._model(batch, self._step)

        loss = output.loss.detach() / output.num_targets
        metric_bag.get("loss", Mean).update(loss, weight=output.num_targets)
        for name in self._metric_names:
            metric_bag.get(name, Mean).update(output.metrics[name])
        metric_bag.get("num_examples", Sum).update(batch.num_examples)
        metric_bag.get("total_num_examples", Sum).update(batch.num_examples)

        return output.loss, output.num_targets

    @override
    def process_metric_values(self, values: MutableMapping[str, object]) -> None:
        """Called by rank 0 when metrics are published, with the values of all ranks.

        :raises RecipeError: the loss is not finite. Looking only here spares every step a wait for the device.
        """
        loss = values["loss"]
        if isinstance(loss, Tensor) and not math.isfinite(float(loss)):
            raise RecipeError(
                f"The loss is {float(loss)} at step {self.step_nr}. Lower `optimizer.config.lr`, lengthen the warm-up or set "
                "`trainer.max_grad_norm`, and continue from an earlier checkpoint."
            )

        for name in self._metric_names:  # plain numbers are shown well also where no descriptor says how
            values[name] = float(values[name])  # type: ignore[arg-type]

        # Validation happens between publishing and the next step, so intervals contain training only.
        num_examples = values["num_examples"]
        if self._interval_start is not None and isinstance(num_examples, Tensor):
            values["samples_per_second"] = float(num_examples) / (time.perf_counter() - self._interval_start)
        self._interval_start = None
