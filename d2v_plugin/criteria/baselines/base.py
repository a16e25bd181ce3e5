"""What the objectives to compare data2vec with have in common: one modality, one view, and no convolutional decoder."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from fairseq2.recipe.error import RecipeError
from torch import Tensor
from typing_extensions import override

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import StepInfo
from d2v_plugin.core.random import row_keys
from d2v_plugin.criteria.base import Criterion
from d2v_plugin.masking.base import MaskSampler, mark_positions, split_mask
from d2v_plugin.models.data2vec2.frontends.base import Frontend
from d2v_plugin.models.data2vec2.model import Data2VecModel


class ComparisonCriterion(Criterion[Data2VecModel]):
    """Trains frontend and encoder of a data2vec 2.0 model for another objective.

    The model's decoders stay as they are: they are frozen, because data parallelism waits for the gradient of every trainable
    parameter, and kept, so that training can go on with ``data2vec2``.
    """

    modality: ClassVar[Modality]

    def __init__(self, sampler: MaskSampler) -> None:
        super().__init__()
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
    @torch.no_grad()
    def masks_of(self, model: Data2VecModel, batch: Batch, step: StepInfo) -> Tensor:
        frontend = model.frontend()
        local = frontend.extract_local(batch.inputs, batch.padding_mask)
        length = local.x.size(1)
        _, masked = self.draw_masks(self.draw_keys(batch, step), frontend, batch, length, local.padding_mask, None)

        return mark_positions(masked, length).unsqueeze(1)

    def draw_keys(self, batch: Batch, step: StepInfo) -> Tensor:
        """(N,) what all random numbers of a batch depend on."""
        return row_keys(step.seed, step.number, batch.ids, num_views=1)

    def draw_masks(
        self, keys: Tensor, frontend: Frontend, batch: Batch, length: int, padding_mask: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Positions of the kept and of the masked tokens of every sample.

        :param length: S
        :param padding_mask: (N, S), at the resolution of the tokens.
        :param mask: (N, S) a given mask, equally many in every row; None = draw one.
        :returns: (N, S - K) and (N, K)
        """
        if mask is not None:
            return split_mask(mask, int(mask[0].sum()))

        min_length = None
        if padding_mask is not None:
            if batch.min_length is None:
                raise ValueError("`batch.min_length` must be given with `batch.padding_mask`.")
            min_length = frontend.output_length(batch.min_length)
        side = round(length**0.5)
        shape = (side, side) if batch.modality is Modality.IMAGE else (length,)
        mask = self.sampler(keys, shape, padding_mask=padding_mask, min_length=min_length)

        return split_mask(mask, self.sampler.num_masked(shape if min_length is None else min_length))
