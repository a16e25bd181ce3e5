"""fairseq's data2vec 1.0 and 2.0 checkpoints -> ours: pre-trained with or without teacher, and fine-tuned.

The weights keep fairseq's names, which are ours. What the file's configuration says and what its weights say must agree.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from d2v_plugin.core.batch import Modality
from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.models.families import AnyConfig
from d2v_plugin.weights.convert import fairseq_data2vec1
from d2v_plugin.weights.convert.fairseq_config import convert_config
from d2v_plugin.weights.convert.fairseq_info import attributes_of, describe_pretraining, read_labels, read_step, teacher_scope
from d2v_plugin.weights.convert.fairseq_settings import FineTuned, find_settings, leave_out
from d2v_plugin.weights.directory import ModelDirectory
from d2v_plugin.weights.state import State, build_skeleton, compare
from d2v_plugin.weights.torch_file import read_torch_file

TEACHER_KEY: Final = "_ema"


def convert_fairseq(
    path: Path, *, teacher_weights: bool = False, original_padding: bool = False, ignored_keys: Collection[str] = ()
) -> ModelDirectory:
    """Read a fairseq checkpoint.

    :param teacher_weights: make the teacher's weights those of the model, where the teacher has them.
    :param original_padding: the model handles padding as fairseq did; see ``Data2VecConfig.original_padding``.
    :param ignored_keys: settings of the pre-trained model to leave out, in whatever section they are.
    :raises CheckpointError: the file is no such checkpoint, is damaged, would run code, uses something that only fairseq
        has, or holds other weights than its configuration says; the message lists all of these keys.
    """
    content = read_torch_file(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise CheckpointError(f"{path} is not a fairseq checkpoint: it has no `model` with weights.")

    name, fine_tuned, settings = find_settings(path, content)
    settings = leave_out(settings, ignored_keys)
    student, head = _split_head(dict(content["model"]), fine_tuned)
    teacher = _pop_teacher(student)
    _check_tensors(path, student | head | (teacher or {}))
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in student.values())
    convert = _convert_data2vec1 if settings["_name"] in fairseq_data2vec1.MODEL_NAMES else _convert_data2vec2
    model = convert(path, settings, student, teacher)

    model.config.original_padding = original_padding
    student = model.student
    if teacher_weights:
        if model.teacher is None:
            raise CheckpointError(f"{path} holds no teacher, so that --teacher-weights has nothing to take.")
        student = student | model.teacher

    info: dict[str, Any] = {
        "source": {
            "format": "fairseq",
            "file": path.name,
            "model": name,
            "step": read_step(content),
            "dtypes": dict(dtypes),
            "weights": "teacher" if teacher_weights else "student",
            "notes": model.notes + [f"The setting `{key}` is left out, as asked for." for key in ignored_keys],
        },
        "pretraining": model.pretraining,
    }
    if fine_tuned is not None:
        info["head"] = {"kind": fine_tuned.kind, "labels": read_labels(content)}

    return ModelDirectory(config=model.config, student=student, teacher=model.teacher, head=_rename(head) or None, info=info)


@dataclass
class Converted:
    """A model in our terms."""

    config: AnyConfig
    student: State
    teacher: State | None
    notes: list[str]
    pretraining: dict[str, Any]


def _convert_data2vec1(path: Path, settings: Mapping[str, Any], student: State, teacher: State | None) -> Converted:
    student = fairseq_data2vec1.convert_state_dict(settings, student)
    teacher = None if teacher is None else fairseq_data2vec1.convert_teacher(settings, teacher)
    with _explained(path):
        config = fairseq_data2vec1.convert_config(settings, student)

    is_whole = fairseq_data2vec1.teacher_scope(settings) == "all"

    def is_averaged(key: str) -> bool:
        return is_whole or (key.startswith("encoder.") and not key.startswith("encoder.regression_head."))

    _check_agreement(path, config, student, teacher, is_averaged)
    notes = [] if config.head_layers else ["The file has no trained prediction head, so the model has none."]
    if (mlp_ratio := settings.get("mlp_ratio", 4)) != 4:
        notes.append(f"`mlp_ratio: {mlp_ratio}` is left out: the original never read it, its blocks have 4.")

    return Converted(config, student, teacher, notes, fairseq_data2vec1.describe_pretraining(settings))


def _convert_data2vec2(path: Path, settings: Mapping[str, Any], student: State, teacher: State | None) -> Converted:
    has_pixel_head = any(key.startswith("recon_proj.") for key in student)
    student = _rename(student)
    teacher = None if teacher is None else _rename_teacher(teacher)
    config, notes = _convert_config(path, settings, student)
    if has_pixel_head:
        notes.append("`recon_proj` is left out: it belongs to the loss on pixels, not to the model.")
    _check_agreement(path, config, student, teacher, partial(_is_averaged, scope=teacher_scope(settings)))
    if teacher is not None:
        # In pre-norm models the original also averages the final norm, and then uses the student's.
        teacher = {key: tensor for key, tensor in teacher.items() if not key.startswith("norm.")}
    pretraining = describe_pretraining(settings, [modality.name for modality in config.frontends])

    return Converted(config, student, teacher, notes, pretraining)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Name the file whose configuration cannot be converted, whatever a malformed one provokes."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as ex:
        raise CheckpointError(f"{path}: the configuration cannot be converted: {ex}") from ex


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
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"{path}: `{key}` in the weights is not a tensor, but `{type(tensor).__name__}`.")
        # A view, or a tensor without data, may pretend to any size.
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"{path}: `{key}` is larger than what the file holds of it.")


def _rename(state: Mapping[str, Tensor]) -> State:
    """Names and shapes of earlier versions of fairseq -> those of the last; everything in fp32."""
    renamed = {}
    for key, tensor in state.items():
        if re.fullmatch(r"modality_encoders\.\w+\.encoder_mask", key) or key.startswith("recon_proj."):
            continue
        key = key.replace(".positional_encoder.pos_embed", ".fixed_positional_encoder.positions")
        if key.endswith(".alibi_scale") and tensor.dim() == 4:
            tensor = tensor.unsqueeze(0)
        renamed[key] = tensor.float() if tensor.is_floating_point() else tensor

    return renamed


def _rename_teacher(state: Mapping[str, Tensor]) -> State:
    """As for the student; a teacher of the shared blocks alone numbers them without saying ``blocks``."""
    return _rename({f"blocks.{key}" if re.match(r"\d+\.", key) else key: tensor for key, tensor in state.items()})


def _convert_config(path: Path, settings: Mapping[str, Any], student: State) -> tuple[Data2VecConfig, list[str]]:
    """Our configuration, and notes on what the weights decided because the file's configuration leaves it open."""
    embeddings = student.get("modality_encoders.TEXT.local_encoder.embed_tokens.weight")
    names = [name for name in ("TEXT", "AUDIO", "IMAGE") if any(key.startswith(f"modality_encoders.{name}.") for key in student)]
    with _explained(path):
        # Without embeddings the report of missing keys says so.
        config = convert_config(settings, vocab_size=1 if embeddings is None else embeddings.size(0), modalities=names)

    notes = []
    for modality, frontend in config.frontends.items():
        prefix = f"modality_encoders.{modality.name}.decoder."
        if frontend.decoder is not None and (layers := _ignored_layers(settings, modality)) is not None:
            notes.append(f"`projection_layers: {layers}` of the image decoder is left out: the original never read it and has 1.")
        if frontend.decoder is not None and not any(key.startswith(prefix) for key in student):
            frontend.decoder = None
            notes.append(f"The file has no weights of the {modality.value} decoder, so the model has none.")
    if config.shared_decoder is not None and not any(key.startswith("shared_decoder.") for key in student):
        config.shared_decoder = None
        notes.append("The file has no weights of the shared decoder, so the model has none.")

    return config, notes


def _ignored_layers(settings: Mapping[str, Any], modality: Modality) -> int | None:
    """How many layers the projection of the image decoder claims to have where it has not."""
    image = attributes_of(attributes_of(settings.get("modalities")).get("image"))
    layers: int = attributes_of(image.get("decoder")).get("projection_layers", 1)

    return layers if modality is Modality.IMAGE and layers != 1 else None


def _check_agreement(
    path: Path, config: AnyConfig, student: State, teacher: State | None, is_averaged: Callable[[str], bool]
) -> None:
    """Compare student and teacher with what the configuration says.

    :param is_averaged: whether the teacher has a weight of its own for a name of the student's.
    :raises CheckpointError: they differ.
    """
    expected, given = build_skeleton(config, num_tensors=len(student), path=path).state_dict(), dict(student)
    if teacher is not None:
        expected |= {f"{TEACHER_KEY}.{key}": tensor for key, tensor in expected.items() if is_averaged(key)}
        given |= {f"{TEACHER_KEY}.{key}": tensor for key, tensor in teacher.items()}
    compare(expected, given).raise_if_any(f"{path} does not hold the weights of the model that its configuration describes:")


def _is_averaged(key: str, scope: Mapping[str, str]) -> bool:
    """Tell whether the teacher has a weight of its own for a name of the student's."""
    if key.startswith("blocks."):
        return True
    if (found := re.match(r"modality_encoders\.(\w+)\.(\w+)", key)) is None:
        return key.startswith("norm.") and "blocks" not in scope.values()
    modality, part = found.groups()
    if scope[modality] == "blocks" or part == "decoder":
        return False

    return scope[modality] == "all" or part not in ("local_encoder", "project_features")
