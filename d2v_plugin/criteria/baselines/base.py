"""Base of the objectives to compare data2vec with: one modality, one view, and no convolutional decoder."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Generic, TypeVar

import torch
from fairseq2.recipe.error import RecipeError
from torch import Tensor
from typing_extensions import override

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import StepInfo, Views
from d2v_plugin.core.validation import ensure_valid
from d2v_plugin.criteria.base import MaskingCriterion
from d2v_plugin.masking.base import MaskSampler
from d2v_plugin.masking.drawing import draw_views
from d2v_plugin.models.base import LocalFeatures
from d2v_plugin.models.data2vec2.model import Data2VecModel

ConfigT = TypeVar("ConfigT")


class ComparisonCriterion(MaskingCriterion[Data2VecModel], Generic[ConfigT]):
    """Trains frontend and encoder of a data2vec 2.0 model for another objective.

    The model's decoders stay as they are: they are frozen, because data parallelism waits for the gradient of every trainable
    parameter, and kept, so that training can go on with ``data2vec2``.
    """

    modality: ClassVar[Modality]

    def __init__(self, config: ConfigT, sampler: MaskSampler) -> None:
        """
        :raises ValueError: the settings are impossible.
        """
        super().__init__()
        ensure_valid(config)
        self.config = config
        self.sampler = sampler

    @override
    def build(self, model: Data2VecModel) -> None:
        frontends = list(model.config.frontends) if isinstance(model, Data2VecModel) else []
        if frontends != [self.modality]:
            found = ", ".join(modality.value for modality in frontends) or f"it is a {type(model).__name__}"
            raise RecipeError(
                f"`{type(self).__name__}` trains models of the family `data2vec` whose only frontend is `{self.modality.value}`, "
                f"but the model's: {found}. Choose an arch such as `{self.modality.value}_base`."
            )
        with torch.device(next(model.parameters()).device):
            self.build_head(model)
        # A plain list: these modules belong to the model.
        self._idle = [module for module in (model.frontend().decoder, model.shared_decoder) if module is not None]

    @abstractmethod
    def build_head(self, model: Data2VecModel) -> None:
        """Create the modules of this objective; new tensors come to lie on the model's device."""

    @override
    def freeze_constants(self) -> None:
        for module in self._idle:
            module.requires_grad_(False)

    @override
    def draw_views(
        self, model: Data2VecModel, batch: Batch, local: LocalFeatures, step: StepInfo, mask: Tensor | None = None
    ) -> Views:
        length, output_length = local.x.size(1), model.output_length

        return draw_views(
            self.sampler, step, batch, length, local.padding_mask, output_length=output_length, grid=local.grid, mask=mask
        )
