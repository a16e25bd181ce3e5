"""Self-distillation, the part that data2vec 1.0 and 2.0 share: a teacher follows the student, who regresses its targets."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import ClassVar, Generic, Protocol

import torch
import torch.nn.functional as F
from fairseq2.recipe.error import RecipeError
from torch import Tensor, nn
from typing_extensions import Self, override

from d2v_plugin.core.batch import Batch
from d2v_plugin.core.contracts import LossOutput, Observation, StepInfo
from d2v_plugin.criteria.base import MaskingCriterion, ModelT
from d2v_plugin.criteria.ema import EmaConfig, decay_at, update_average
from d2v_plugin.criteria.targets import TargetConfig, add_layer, make_targets
from d2v_plugin.models.base import LocalFeatures
from d2v_plugin.models.statistics import channel_deviations


class Teacher(nn.Module, Generic[ModelT]):
    """Copies of the student's modules under the same names, frozen and always in evaluation mode.

    Subclasses create the copies and say how whole samples pass through them.
    """

    _pairs: dict[str, tuple[Tensor, Tensor]] | None = None

    @override
    def train(self, mode: bool = True) -> Self:
        """The teacher does not drop out; a call changes nothing."""
        return super().train(False)

    def pairs(self, model: ModelT) -> dict[str, tuple[Tensor, Tensor]]:
        """The teacher's parameters and the student's of the same names; looked up once, since a teacher has one student."""
        if self._pairs is None:
            self._pairs = {name: (average, model.get_parameter(name)) for name, average in self.named_parameters()}

        return self._pairs

    @torch.no_grad()
    def follow(self, model: ModelT, decay: float, *, skip: Tensor | None = None) -> None:
        """One step of the moving average; constants are copied.

        :param skip: as for :func:`update_average`.
        """
        pairs = self.pairs(model).values()
        moving = [(average, current) for average, current in pairs if current.requires_grad]
        update_average((average for average, _ in moving), (current for _, current in moving), decay, skip=skip)
        for average, current in pairs:
            if not current.requires_grad:
                average.copy_(current)


class DistillationConfig(Protocol):
    """The settings that both objectives have."""

    ema: EmaConfig
    targets: TargetConfig
    loss_beta: float
    loss_scale: float | None


class DistillationCriterion(MaskingCriterion[ModelT]):
    """The regression of the teacher's targets at masked positions; owns the teacher."""

    config: DistillationConfig
    teacher: Teacher[ModelT]
    compiled_methods: ClassVar[tuple[str, ...]] = ("add_layer",)

    @override
    def build(self, model: ModelT) -> None:
        depth = len(model.blocks)
        num_layers = self.config.targets.count_layers(depth)
        if not 1 <= num_layers <= depth:
            raise RecipeError(f"`targets.num_layers` must be between 1 and the model's depth ({depth}), but is {num_layers}.")

    @override
    def freeze_constants(self) -> None:
        self.teacher.requires_grad_(False)

    @override
    def after_step(self, model: ModelT, step_nr: int) -> None:
        self.teacher.follow(model, decay_at(self.config.ema, step_nr))

    @override
    def queue_after_step(self, model: ModelT, step_nr: int, skip: Tensor) -> bool:
        self.teacher.follow(model, decay_at(self.config.ema, step_nr), skip=skip)

        return True

    @abstractmethod
    def run_teacher(self, model: ModelT, batch: Batch, local: LocalFeatures) -> Iterator[Tensor]:
        """Encode whole samples: of one block after the other what targets are made of, (N, S, D)."""

    @torch.no_grad()
    def compute_targets(self, model: ModelT, batch: Batch, local: LocalFeatures) -> Tensor:
        """(N, S, D) fp32; one teacher pass per sample serves all of its views."""
        config = self.config.targets
        depth = len(model.blocks)
        top_layers = islice(self.run_teacher(model, batch, local), depth - config.count_layers(depth), None)

        padding_mask = None if model.config.original_padding else local.padding_mask

        return make_targets(config, top_layers, padding_mask, add=self.add_layer)

    def add_layer(self, config: TargetConfig, total: Tensor | None, layer: Tensor, padding_mask: Tensor | None) -> Tensor:
        """As the function: what is compiled is a method."""
        return add_layer(config, total, layer, padding_mask)

    @override
    @torch.no_grad()
    def teacher_layers(self, model: ModelT, batch: Batch) -> list[Tensor]:
        local = model.extract_local(batch.inputs, batch.padding_mask, modality=batch.modality)

        return list(self.run_teacher(model, batch, local))

    def distance(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Smooth L1 or squared error, summed over all elements, in fp32."""
        predictions, targets, beta = predictions.float(), targets.float(), self.config.loss_beta
        if beta == 0.0:
            return F.mse_loss(predictions, targets, reduction="sum")

        return F.smooth_l1_loss(predictions, targets, reduction="sum", beta=beta)

    def scale(self, model: ModelT) -> float:
        """The factor of all distances."""
        return self.config.loss_scale if self.config.loss_scale is not None else model.config.dim**-0.5

    def name_metrics(self, **terms: bool) -> None:
        """Announce the metrics of :meth:`sum_up`, given which terms the loss can have."""
        names = [name for name, is_used in terms.items() if is_used]
        shared = ("target_deviation", "prediction_deviation", "explained_variance", "masked_fraction", "ema_decay")
        self.metric_names = (*names, *shared)

    def sum_up(
        self, step: StepInfo, terms: Mapping[str, Tensor], predictions: Tensor, targets: Tensor, share: float, seen: Observation
    ) -> LossOutput:
        """Add the terms of the loss, and measure.

        :param terms: by name, sums over the masked positions.
        :param predictions, targets: (..., D) at the masked positions.
        :param share: of the positions that are masked.
        """
        loss, num_targets = torch.stack(list(terms.values())).sum(), targets[..., 0].numel()

        # Modalities may differ in their terms, but the trainer wants the same metrics from every batch.
        metrics = {name: loss.new_zeros(()) for name in self.metric_names}
        metrics |= {name: term.detach() / num_targets for name, term in terms.items()}
        deviations, predictions = channel_deviations(targets), predictions.detach().float()
        metrics["target_deviation"] = deviations.mean()
        metrics["prediction_deviation"] = channel_deviations(predictions).mean()
        metrics["explained_variance"] = 1.0 - F.mse_loss(predictions, targets.float()) / deviations.square().mean()
        metrics["masked_fraction"] = torch.tensor(share)
        metrics["ema_decay"] = torch.tensor(decay_at(self.config.ema, step.number))

        return LossOutput(loss, num_targets, metrics, seen)
