"""The teacher of data2vec 1.0: the part of the model that is averaged, and its pass over whole samples.

It is a copy of the student under the student's names, in which the modules that it shares with the student are None.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from d2v_plugin.models.base import find_part
from d2v_plugin.models.data2vec1.base import Data2Vec1Model, TeacherScope
from d2v_plugin.models.data2vec1.blocks import BlockOutput


def copy_teacher(model: Data2Vec1Model, scope: TeacherScope) -> Data2Vec1Model:
    """The student without what only predicts and what it shares with its teacher; frozen, in evaluation mode."""
    left_out = [find_part(model, name) for name in model.head_modules]
    if scope != "all":
        left_out += [find_part(model, name) for name in model.local_modules]
    if scope == "layers":
        encoder = model.context_encoder
        left_out += [find_part(encoder, name) for name in encoder.position_modules]

    # Parts that the copy leaves out are masked for the copying, which may be large.
    memo: dict[int, Any] = {id(part): None for part in left_out}
    teacher = copy.deepcopy(model, memo)
    teacher.requires_grad_(False)
    teacher.eval()

    return teacher


@torch.no_grad()
def run_teacher(
    teacher: Data2Vec1Model,
    model: Data2Vec1Model,
    scope: TeacherScope,
    *,
    inputs: Tensor,
    local: Tensor,
    padding_mask: Tensor | None,
    context: Tensor | None = None,
) -> Iterator[BlockOutput]:
    """Encode whole samples.

    :param model: the student.
    :param local: the student's local features, used unless the teacher has its own.
    :param padding_mask: (N, S)
    :param context: (N or 1, X + S, X + S), True = may attend; None = everything.
    :returns: the output of one block after the other, extra tokens included.
    """
    local = teacher.embed(inputs) if scope == "all" else local.detach()
    positions = model if scope == "layers" else teacher

    yield from teacher.context_encoder.run(positions.context_encoder.prepare(local, padding_mask, context))


def teacher_pairs(teacher: Data2Vec1Model, model: Data2Vec1Model) -> Iterator[tuple[Tensor, Tensor]]:
    """The teacher's parameters and the student's of the same names."""
    for name, average in teacher.named_parameters():
        yield average, model.get_parameter(name)
