"""The teacher of data2vec 1.0: the part of the model that is averaged, and its pass over whole samples."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from d2v_plugin.core.batch import Batch
from d2v_plugin.criteria.distillation import Teacher
from d2v_plugin.models.base import LocalFeatures, find_part
from d2v_plugin.models.data2vec1.base import Data2Vec1Model, TeacherScope
from d2v_plugin.models.data2vec1.blocks import BlockOutput


class Data2Vec1Teacher(Teacher[Data2Vec1Model]):
    """A copy of the student without what only predicts and what it shares with its teacher."""

    def __init__(self, model: Data2Vec1Model, scope: TeacherScope, *, freezes: bool = False) -> None:
        """
        :param freezes: the decay reaches 1, and the whole teacher stands still from then on: positions that it would share with
            the student are copied after every update until then, as fairseq does.
        """
        super().__init__()
        self.scope = scope
        self.copies_positions = scope == "layers" and freezes
        left_out = [find_part(model, name) for name in model.head_modules]
        if scope != "all":
            left_out += [find_part(model, name) for name in model.local_modules]
        if scope == "layers" and not freezes:
            encoder = model.context_encoder
            left_out += [find_part(encoder, name) for name in encoder.position_modules]

        # Parts that the copy leaves out are masked for the copying, which may be large.
        memo: dict[int, Any] = {id(part): None for part in left_out}
        copied = copy.deepcopy(model, memo)
        # Both have the same children, so that the copy's are the teacher's under the student's names; the copy itself, which
        # knows how they work together, is none (hence the tuple).
        self._modules, self._parameters = copied._modules, copied._parameters
        self._copied = (copied,)
        self.requires_grad_(False)
        self.eval()

    @override
    @torch.no_grad()
    def follow(self, model: Data2Vec1Model, decay: float, *, skip: Tensor | None = None) -> None:
        super().follow(model, decay, skip=skip)
        if self.copies_positions and decay < 1.0:
            prefixes = tuple(f"{model.encoder_name}.{name}." for name in model.context_encoder.position_modules)
            for name, (copied, current) in self.pairs(model).items():
                if f"{name}.".startswith(prefixes):
                    copied.copy_(current)

    @torch.no_grad()
    def forward(
        self, model: Data2Vec1Model, batch: Batch, local: LocalFeatures, *, context: Tensor | None = None
    ) -> Iterator[BlockOutput]:
        """Encode whole samples.

        :param model: the student.
        :param local: the student's local features, used unless the teacher has its own.
        :param context: (N or 1, X + S, X + S), True = may attend; None = everything.
        :returns: the output of one block after the other, extra tokens included.
        """
        (copied,) = self._copied
        x = copied.embed_tokens(batch.inputs, batch.padding_mask) if self.scope == "all" else local.x.detach()
        positions = model if self.scope == "layers" and not self.copies_positions else copied

        yield from copied.context_encoder.run(positions.context_encoder.prepare(x, local.padding_mask, context))
