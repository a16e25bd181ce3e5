"""The teacher of data2vec 2.0: the part of the model that is averaged, and its pass over whole samples."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from d2v_plugin.core.batch import Batch
from d2v_plugin.criteria.distillation import Teacher
from d2v_plugin.models.base import BlockList, LocalFeatures
from d2v_plugin.models.data2vec2.frontends.base import Frontend
from d2v_plugin.models.data2vec2.model import Data2VecModel

TeacherScope = Literal["blocks", "context", "all"]
"""Modules that the teacher has of its own; it shares the others with the student.

``blocks``: the shared Transformer (text). ``context``: also what follows the local features, that is positions, extra
tokens, ALiBi scales, norm and prenet (speech). ``all``: the local encoder too (images).
"""


class Data2Vec2Teacher(Teacher[Data2VecModel]):
    """Copies of the shared blocks and of frontends, or parts of them."""

    def __init__(self, model: Data2VecModel, scope: dict[str, TeacherScope]) -> None:
        """
        :param scope: for each name in ``model.modality_encoders``.
        """
        super().__init__()
        self.blocks: BlockList = copy.deepcopy(model.blocks)
        self.modality_encoders = nn.ModuleDict(
            {name: _copy_frontend(model.modality_encoders[name], s) for name, s in scope.items() if s != "blocks"}  # type: ignore[arg-type]
        )
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def forward(self, model: Data2VecModel, batch: Batch, local: LocalFeatures) -> Iterator[tuple[Tensor, Tensor]]:
        """Encode whole samples.

        :param local: the student's local features, used where the teacher has no local encoder.
        :returns: output and tap of each shared block, both (N, S, D), extra tokens removed.
        """
        name = batch.modality.name
        frontend = model.frontend(batch.modality)
        local = replace(local, x=local.x.detach())
        if name in self.modality_encoders:
            frontend = self.modality_encoders[name]  # type: ignore[assignment]
            if frontend.local_encoder is not None:
                local = frontend.extract_local(batch.inputs, batch.padding_mask)
        tokens = frontend.contextualize(local)

        x = tokens.x
        for block, bias in zip(self.blocks, tokens.biases, strict=True):
            x, tap = block(x, bias)
            yield x[:, frontend.num_extra_tokens :], tap[:, frontend.num_extra_tokens :]


def _copy_frontend(frontend: Frontend, scope: TeacherScope) -> Frontend:
    """A copy without decoder, and without local encoder unless the scope is ``all``."""
    # Parts that the copy leaves out are masked for the copying, which may be large.
    memo: dict[int, Any] = {id(frontend.decoder): None}
    if scope != "all":
        memo |= {id(frontend.local_encoder): None, id(frontend.project_features): None}

    return copy.deepcopy(frontend, memo)
