"""An extension file as a user would write it: a new objective in one class, registered by name."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from fairseq2.runtime.dependency import DependencyContainer
from torch import nn
from typing_extensions import override

from d2v_plugin.core.batch import Batch
from d2v_plugin.core.contracts import LossOutput, StepInfo
from d2v_plugin.core.registry import register
from d2v_plugin.criteria.base import Criterion
from d2v_plugin.models.data2vec2.model import Data2VecModel


@dataclass(kw_only=True)
class BrightnessConfig:
    weight: float = 1.0
    """Weight of the loss."""


class BrightnessCriterion(Criterion[Data2VecModel]):
    """Predicts how bright each image is."""

    metric_names = ("brightness",)

    def __init__(self, config: BrightnessConfig) -> None:
        super().__init__()
        self.weight = config.weight

    @override
    def build(self, model: Data2VecModel) -> None:
        self.head = nn.Linear(model.config.dim, 1, device=next(model.parameters()).device)

    @override
    def forward(self, model: Data2VecModel, batch: Batch, step: StepInfo) -> LossOutput:
        features = model.extract_features(batch.inputs).x.mean(dim=1)
        brightness = batch.inputs.mean(dim=(1, 2, 3))
        loss = (self.head(features).squeeze(1) - brightness).square().sum() * self.weight

        return LossOutput(loss, batch.num_examples, {"brightness": torch.mean(brightness)})


def setup_fairseq2_extension(container: DependencyContainer) -> None:
    register(container, Criterion, "brightness", BrightnessCriterion, BrightnessConfig)
