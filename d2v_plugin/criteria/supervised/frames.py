"""Base of the objectives that predict something at each frame of recordings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import StepInfo
from d2v_plugin.criteria.supervised.base import SupervisedConfig, SupervisedCriterion
from d2v_plugin.criteria.supervised.feature_masks import FeatureMaskConfig, extract_masked
from d2v_plugin.models.base import EncoderModel, Features


class FrameCriterion(SupervisedCriterion[EncoderModel]):
    """A linear layer on the features of each frame; in training a part of these is hidden."""

    head: nn.Linear

    framewise = True

    def __init__(self, config: SupervisedConfig, *, dropout: float, masking: FeatureMaskConfig | None) -> None:
        """
        :param dropout: before the linear layer.
        :param masking: None = nothing is hidden.
        """
        super().__init__(config)
        self.dropout = nn.Dropout(dropout)
        self.masking = masking

    @override
    def build(self, model: EncoderModel) -> None:
        if Modality.AUDIO not in model.config.frontends:
            raise ValueError("the model has no frontend for `audio`; choose an arch that has one, such as `audio_base`.")
        super().build(model)
        assert self.labels is not None
        with torch.device(next(model.parameters()).device):
            self.head = nn.Linear(model.config.dim, len(self.labels))
            nn.init.xavier_uniform_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    @override
    def unused_modules(self, model: EncoderModel) -> Sequence[str]:
        is_masked = self.masking is not None and self.masking.probability > 0.0
        return [name for name in super().unused_modules(model) if name != "mask_emb" or not is_masked]

    @override
    def extract(self, model: EncoderModel, batch: Batch, step: StepInfo | None) -> Features:
        if step is None or self.masking is None:
            return super().extract(model, batch, step)
        return extract_masked(model, batch, step, self.masking)

    def compute_logits(self, model: EncoderModel, batch: Batch, step: StepInfo | None) -> tuple[Tensor, Tensor | None]:
        """The layer's output (N, S, C) float32, and the padding mask (N, S).

        :param step: None = evaluation.
        """
        features = self.encode(model, batch, step)
        return self.apply_head(features), features.padding_mask

    @override
    def apply_head(self, features: Features) -> Tensor:
        return self.head(self.dropout(features.x)).float()  # type: ignore[no-any-return]
