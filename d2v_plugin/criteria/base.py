"""The criterion: what a model is trained for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor, nn
from torch.utils._pytree import register_dataclass

from d2v_plugin.core.batch import Batch
from d2v_plugin.core.contracts import LossOutput, StepInfo
from d2v_plugin.core.registry import ComponentSection
from d2v_plugin.models.base import EncoderModel

ModelT = TypeVar("ModelT", bound=EncoderModel)


# FSDP waits for the backward pass at the tensors that the whole model returns, and finds them only in types that are registered.
# Without that, gradients would never be reduced in updates in which no block of the encoder gets any.
register_dataclass(LossOutput)


class Criterion(nn.Module, ABC, Generic[ModelT]):
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

    def freeze_constants(self) -> None:
        """Exclude from training what the optimizer must not touch, such as a teacher; called when gradients are switched on."""

    @abstractmethod
    def forward(self, model: ModelT, batch: Batch, step: StepInfo) -> LossOutput:
        """Compute the loss of one batch."""

    def after_step(self, model: ModelT, step_nr: int) -> None:
        """Called after every optimizer step with the number of updates done so far."""

    def masks_of(self, model: ModelT, batch: Batch, step: StepInfo) -> Tensor | None:
        """The masks that :meth:`forward` draws, to look at: (N, M, S), True = masked; None = nothing is masked."""
        return None

    def teacher_layers(self, model: ModelT, batch: Batch) -> list[Tensor]:
        """What the teacher makes targets of, to look at: for each of its blocks (N, S, D); empty = there is no teacher."""
        return []


@dataclass(kw_only=True)
class CriterionSection(ComponentSection):
    """Selects the training objective."""

    base: ClassVar[type[Criterion[Any]]] = Criterion

    name: str = "data2vec2"
