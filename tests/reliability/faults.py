"""An extension file with an objective that goes wrong on request: data2vec 2.0 as it is, apart from its faults."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from fairseq2.recipe.component import register_component
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver
from torch import Tensor
from typing_extensions import override

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import LossOutput, StepInfo
from d2v_plugin.core.registry import create
from d2v_plugin.criteria.base import Criterion
from d2v_plugin.criteria.data2vec2.criterion import Data2Vec2Config, Data2Vec2Criterion
from d2v_plugin.masking.base import MaskSampler
from d2v_plugin.models.base import LocalFeatures
from d2v_plugin.models.data2vec2.model import Data2VecModel
from d2v_plugin.training.checkpoints.hold import HoldObserver
from d2v_plugin.training.observers import Observer

if os.environ.get("SAVE_SKIPPED"):
    # A run does not save updates that were skipped; tests compare them with those before.
    HoldObserver.after_update = Observer.after_update  # type: ignore[method-assign]


@dataclass(kw_only=True)
class FaultyConfig(Data2Vec2Config):
    faults: dict[str, list[int]] = field(default_factory=dict)
    """In which updates what happens: ``nan_loss``, ``infinite_gradient``, ``large_loss``, ``constant_targets``, ``kill``, …"""

    fault_rank: int = 0
    """On which rank; -1 = on all."""

    record_to: str = ""
    """``record`` writes what a rank computes with to a file of it in this folder."""


class FaultyCriterion(Data2Vec2Criterion):
    config: FaultyConfig

    def _happens(self, fault: str, step: StepInfo) -> bool:
        rank = int(os.environ.get("RANK", "0"))

        return step.number in self.config.faults.get(fault, []) and self.config.fault_rank in (rank, -1)

    @override
    def forward(self, model: Data2VecModel, batch: Batch, step: StepInfo) -> LossOutput:  # type: ignore[override]
        if self._happens("kill", step):
            os.kill(os.getpid(), 9)
        if self._happens("record", step):
            self._record(model, batch, step)
        if self._happens("constant_images", step):
            batch.inputs = batch.inputs.mean(dim=(1, 2, 3), keepdim=True).expand_as(batch.inputs)
        if self._happens("dead_frontend", step):
            with torch.no_grad():
                for parameter in model.frontend().local_encoder.parameters():  # type: ignore[union-attr]
                    parameter.zero_()
        self._targets_are_constant = self._happens("constant_targets", step)
        output = super().forward(model, batch, step)
        if self._happens("nan_loss", step):
            output.loss = output.loss * torch.nan
        if self._happens("infinite_loss", step):  # its gradients stay finite
            output.loss = output.loss + torch.inf
        if self._happens("infinite_gradient", step):  # the loss stays finite
            output.loss.register_hook(lambda gradient: gradient * torch.inf)
        if self._happens("large_loss", step):
            output.loss = output.loss * 1000.0

        return output

    def _record(self, model: Data2VecModel, batch: Batch, step: StepInfo) -> None:
        masks = self.masks_of(model, batch, step).int().tolist()
        record = {
            "samples": dict(zip(batch.ids.tolist(), masks, strict=True)),
            "pixels": dict(zip(batch.ids.tolist(), batch.inputs.mean(dim=(1, 2, 3)).tolist(), strict=True)),
            "layers": [block.layer_drop.leaves_out for block in model.blocks],
            "dropout": model.blocks[0].attn.dropout(torch.ones(64)).tolist(),
            "teacher": [float(parameter.double().sum()) for parameter in self.teacher.parameters()],
        }
        rank = os.environ.get("RANK", "0")
        with (Path(self.config.record_to) / f"{os.environ.get('WORLD_SIZE', '1')}_{rank}.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    @override
    def compute_targets(self, model: Data2VecModel, batch: Batch, local: LocalFeatures) -> Tensor:
        targets = super().compute_targets(model, batch, local)

        return torch.ones_like(targets) if self._targets_are_constant else targets


def _create(resolver: DependencyResolver, config: FaultyConfig) -> FaultyCriterion:
    return FaultyCriterion(config, {modality: create(resolver, MaskSampler, config.masking) for modality in Modality})


def setup_fairseq2_extension(container: DependencyContainer) -> None:
    register_component(container, Criterion, "faulty", FaultyConfig, _create)
