"""The base of both teachers: modules of the student's whose weights are a moving average of the student's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic

import torch
from torch import Tensor, nn
from typing_extensions import Self, override

from d2v_plugin.criteria.base import ModelT
from d2v_plugin.criteria.ema import update_average


class Teacher(nn.Module, Generic[ModelT]):
    """Copies of the student's modules under the same names, frozen and always in evaluation mode.

    Subclasses create the copies and say how whole samples pass through them.
    """

    @override
    def train(self, mode: bool = True) -> Self:
        """The teacher does not drop out; a call changes nothing."""
        return super().train(False)

    def pairs(self, model: ModelT) -> Iterator[tuple[Tensor, Tensor]]:
        """The teacher's parameters and the student's of the same names."""
        for name, average in self.named_parameters():
            yield average, model.get_parameter(name)

    @torch.no_grad()
    def follow(self, model: ModelT, decay: float) -> None:
        """One step of the moving average; constants are copied."""
        pairs = list(self.pairs(model))
        moving = [(average, current) for average, current in pairs if current.requires_grad]
        update_average((average for average, _ in moving), (current for _, current in moving), decay)
        for average, current in pairs:
            if not current.requires_grad:
                average.copy_(current)
