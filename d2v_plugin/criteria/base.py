"""The criterion: the objective that a model is trained for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor
from typing_extensions import override

from d2v_plugin.core.batch import Batch
from d2v_plugin.core.contracts import LossOutput, Objective, StepInfo, Views
from d2v_plugin.core.registry import ComponentSection
from d2v_plugin.models.base import EncoderModel, LocalFeatures

ModelT = TypeVar("ModelT", bound=EncoderModel)


class Criterion(Objective, Generic[ModelT]):
    """A training objective, registered by name; see :mod:`d2v_plugin.core.registry`.

    It is a module: it may own others (a teacher, heads), which :meth:`build` creates. The recipe attaches it to the model
    as ``model.criterion``, so that checkpoints, DDP and FSDP see them; they are dropped when the model is loaded for use.
    """

    metric_names: Sequence[str] = ()
    """Names of the entries of :attr:`LossOutput.metrics`."""

    def build(self, model: ModelT) -> None:
        """Create the modules that depend on the model, on the model's device (which may be ``meta``).

        :raises fairseq2.recipe.error.RecipeError: the criterion cannot train this model.
        """

    @override
    @abstractmethod
    def forward(self, model: ModelT, batch: Batch, step: StepInfo) -> LossOutput:
        """Compute the loss of one batch."""

    def after_step(self, model: ModelT, step_nr: int) -> None:
        """Called after every optimizer step with the number of updates done so far."""

    def queue_after_step(self, model: ModelT, step_nr: int, skip: Tensor) -> bool:
        """Called on a GPU when the optimizer's step is queued, and the host cannot know yet whether the update counts.

        :param skip: 1 on the device = it does not, and nothing may change; else 0.
        :returns: True = what :meth:`after_step` does is queued, and it is not called; False = call it when the host knows.
        """
        return False

    def masks_of(self, model: ModelT, batch: Batch, step: StepInfo) -> Tensor | None:
        """The masks that :meth:`forward` draws, to look at: (N, M, S), True = masked; None = nothing is masked."""
        return None

    def teacher_layers(self, model: ModelT, batch: Batch) -> list[Tensor]:
        """The layers that the teacher makes targets of, to look at: for each of its blocks (N, S, D); empty = no teacher."""
        return []


class MaskingCriterion(Criterion[ModelT]):
    """A training objective on masked views of the samples."""

    @abstractmethod
    def draw_views(self, model: ModelT, batch: Batch, local: LocalFeatures, step: StepInfo, mask: Tensor | None = None) -> Views:
        """Draw the masked views of a batch, see :func:`d2v_plugin.masking.drawing.draw_views`.

        :param mask: given masks; None = draw them.
        """

    @override
    @torch.no_grad()
    def masks_of(self, model: ModelT, batch: Batch, step: StepInfo) -> Tensor:
        local = model.extract_local(batch.inputs, batch.padding_mask, modality=batch.modality)
        mask = self.draw_views(model, batch, local, step).mask

        return mask.view(batch.num_examples, -1, mask.size(1))


def criterion_of(model: EncoderModel) -> Criterion[Any] | None:
    """The criterion that is attached to a model; None = there is none."""
    assert model.criterion is None or isinstance(model.criterion, Criterion)

    return model.criterion


@dataclass(kw_only=True)
class CriterionSection(ComponentSection):
    """Selects the training objective."""

    base: ClassVar[type[Criterion[Any]]] = Criterion

    name: str = "data2vec2"
