"""fairseq's checkpoints of data2vec 1.0 and 2.0 -> ours: pre-trained with or without teacher, and fine-tuned. Its wav2vec 2.0,
HuBERT and RoBERTa, which are the encoder of data2vec 1.0, come by :mod:`fairseq_speech` and :mod:`text`.

The weights of data2vec keep fairseq's names, which are ours. What a file's configuration and its weights say must agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.weights.convert import eat, fairseq_data2vec1, fairseq_data2vec2, fairseq_speech, image, text
from d2v_plugin.weights.convert.converted import TEACHER_KEY, Converted, check_agreement, explained
from d2v_plugin.weights.convert.fairseq_head_parts import Head
from d2v_plugin.weights.convert.fairseq_heads import convert_head
from d2v_plugin.weights.convert.fairseq_info import attributes_of, read_labels, read_step
from d2v_plugin.weights.convert.fairseq_settings import (
    AUTHORS,
    SPEECH,
    FineTuned,
    Settings,
    find_authors,
    find_settings,
    leave_out,
)
from d2v_plugin.weights.convert.transfer import Reader, Transfer
from d2v_plugin.weights.directory import ModelDirectory
from d2v_plugin.weights.state import State
from d2v_plugin.weights.torch_file import read_torch_file


def convert_fairseq(
    path: Path,
    *,
    teacher_weights: bool = False,
    original_padding: bool = False,
    ignored_keys: Collection[str] = (),
    labels: Path | None = None,
) -> ModelDirectory:
    """Read a fairseq checkpoint; or a file of data2vec 1.0's, BEiT's or MAE's own code for images.

    :param teacher_weights: make the teacher's weights those of the model, where the teacher has them.
    :param original_padding: the model handles padding as fairseq did; see ``Data2VecConfig.original_padding``.
    :param ignored_keys: settings of the pre-trained model to leave out, in whatever section they are.
    :param labels: names of a fine-tuned model's outputs, where the checkpoint has none: fairseq's ``dict.ltr.txt``, or one name
        on each line.
    :raises CheckpointError: the file is no such checkpoint, is damaged, would run code, uses something that only fairseq
        has, or holds other weights than its configuration says; the message lists all of these keys.
    """
    content = read_torch_file(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise CheckpointError(f"{path} is not a fairseq checkpoint: it has no `model` with weights.")

    settings = find_authors(content) or find_settings(path, content)
    settings = replace(settings, model=leave_out(settings.model, ignored_keys))
    student, head = _split_head(dict(content["model"]), settings.fine_tuned)
    teacher = _pop_teacher(student) or attributes_of(content.get("model_ema")) or None
    _check_tensors(path, student | head | (teacher or {}))
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in student.values())
    model = _choose(settings)(path, settings.model, student, teacher)

    model.config.original_padding = original_padding
    if isinstance(model.config, Data2VecConfig):
        eat.fit_reading(model.config, settings.outer, original_padding=original_padding)
    student = model.student
    if teacher_weights:
        if model.teacher is None:
            raise CheckpointError(f"{path} holds no teacher, so that --teacher-weights has nothing to take.")
        student = student | model.teacher
    found = Head(None, None)
    if settings.fine_tuned is not None:
        found = convert_head(path, settings, model.config, head, symbols=read_labels(content), labels=labels)
        model.transfer.add("left out" if found.state is None else "came over", head, found.reason)
    elif labels is not None:
        raise CheckpointError(f"{path} is not fine-tuned, so that --labels has nothing to name.")
    model.transfer.add("came over", [f"teacher.{key.partition('.')[0]}" for key in model.teacher or ()])

    info: dict[str, Any] = {
        "source": {
            "format": "fairseq",
            "file": path.name,
            "model": settings.name,
            "step": read_step(content),
            "dtypes": dict(dtypes),
            "weights": "teacher" if teacher_weights else "student",
            "notes": model.notes + [f"The setting `{key}` is left out, as asked for." for key in ignored_keys],
            "transfer": model.transfer.describe(),
        },
        "pretraining": model.pretraining,
    }

    return ModelDirectory(
        config=model.config,
        student=student,
        teacher=model.teacher,
        head=found.state,
        provenance=found.provenance,
        info=info,
    )


def _choose(settings: Settings) -> Callable[[Path, Mapping[str, Any], State, State | None], Converted]:
    """The conversion of a pre-trained model."""
    name = settings.model["_name"]
    if name == AUTHORS:
        return partial(_adopt, image.adopt_authors)
    if name in SPEECH:
        return partial(_adopt, fairseq_speech.adopt)
    if settings.is_roberta:
        return partial(_adopt, text.adopt_fairseq)
    return _convert_data2vec1 if name in fairseq_data2vec1.MODEL_NAMES else fairseq_data2vec2.convert


def _adopt(adopt: Reader, path: Path, settings: Mapping[str, Any], student: State, teacher: State | None) -> Converted:
    with explained(path):
        foreign = adopt(path, settings, student)
        if teacher is not None:
            averaged = adopt(path, settings, teacher).state
            teacher = {key: tensor for key, tensor in averaged.items() if not key.startswith(("final_proj.", "mask_emb"))}
    return Converted(foreign.config, foreign.state, teacher, [], {}, foreign.transfer)


def _convert_data2vec1(path: Path, settings: Mapping[str, Any], student: State, teacher: State | None) -> Converted:
    transfer = Transfer(f"fairseq's `{settings['_name']}`")
    given = student
    student = fairseq_data2vec1.convert_state_dict(settings, given)
    transfer.add("came over", [key for key in student if key != "mask_emb" or key in given])
    transfer.add("new", student.keys() & {"mask_emb"} - given.keys(), "zero: the checkpoint has none")
    dropped = [key for key, tensor in given.items() if not fairseq_data2vec1.convert_state_dict(settings, {key: tensor})]
    transfer.add("left out", dropped, "no weights, or never trained")
    teacher = None if teacher is None else fairseq_data2vec1.convert_teacher(settings, teacher)
    with explained(path):
        config = fairseq_data2vec1.convert_config(settings, student)

    is_whole = fairseq_data2vec1.teacher_scope(settings) == "all"

    def is_averaged(key: str) -> bool:
        return is_whole or (key.startswith("encoder.") and not key.startswith("encoder.regression_head."))

    check_agreement(path, config, student, teacher, is_averaged)
    notes = [] if config.head_layers else ["The file has no trained prediction head, so the model has none."]
    if (mlp_ratio := settings.get("mlp_ratio", 4)) != 4:
        notes.append(f"`mlp_ratio: {mlp_ratio}` is left out: the original never read it, its blocks have 4.")

    return Converted(config, student, teacher, notes, fairseq_data2vec1.describe_pretraining(settings), transfer)


def _pop_teacher(student: dict[str, Any]) -> dict[str, Any] | None:
    """Take the teacher, which is one entry of the weights, from the student."""
    candidates = [student.pop(key, None) for key in (TEACHER_KEY, f"encoder.{TEACHER_KEY}")]
    return next((teacher for teacher in candidates if isinstance(teacher, dict)), None)


def _split_head(weights: dict[str, Any], fine_tuned: FineTuned | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pre-trained weights under their own names, and those of the head; what is neither counts as the former."""
    if fine_tuned is None:
        return weights, {}
    head = {key.removeprefix("w2v_encoder."): value for key, value in weights.items() if key.startswith(fine_tuned.head_prefixes)}
    student = {
        key.removeprefix(fine_tuned.prefix): value
        for key, value in weights.items()
        if not key.startswith(fine_tuned.head_prefixes)
    }

    return student, head


def _check_tensors(path: Path, state: Mapping[Any, Any]) -> None:
    for key, tensor in state.items():
        if not isinstance(key, str):
            raise CheckpointError(f"{path}: `{key}` in the weights is no name, but `{type(key).__name__}`.")
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{path}: `{key}` in the weights is not a tensor, but `{type(tensor).__name__}`.")
        # A view, or a tensor without data, may pretend to any size.
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"{path}: `{key}` is larger than what the file holds of it.")
