"""fairseq's data2vec 2.0 configurations and weights -> ours; the weights keep fairseq's names, which are ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from d2v_plugin.core.batch import Modality
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.weights.convert import eat
from d2v_plugin.weights.convert.converted import Converted, check_agreement, explained
from d2v_plugin.weights.convert.fairseq_config import convert_config
from d2v_plugin.weights.convert.fairseq_info import attributes_of, describe_pretraining, teacher_scope
from d2v_plugin.weights.convert.transfer import Transfer
from d2v_plugin.weights.state import State


def convert(path: Path, settings: Mapping[str, Any], student: State, teacher: State | None) -> Converted:
    """Make a model of ours.

    :param path: the file, for messages.
    :param settings: the ``model`` section of the pre-training configuration.
    :param student: without a head on top.
    :raises CheckpointError: as for :func:`d2v_plugin.weights.convert.fairseq.convert_fairseq`.
    """
    transfer = Transfer("fairseq's data2vec 2.0")
    has_pixel_head = any(key.startswith("recon_proj.") for key in student)
    given, student = student, _rename(student)
    if eat.is_eat(settings, student):
        settings = eat.as_audio(settings, student["modality_encoders.IMAGE.fixed_positional_encoder.positions"])
        student = eat.rename_modality(student)
        teacher = None if teacher is None else eat.rename_modality(teacher)
    transfer.add("came over", student)
    transfer.add("left out", [key for key in given if not _rename({key: given[key]})], "no weights of the model")
    teacher = None if teacher is None else _rename_teacher(teacher)
    config, notes = _convert_config(path, settings, student)
    if has_pixel_head:
        notes.append("`recon_proj` is left out: it belongs to the loss on pixels, not to the model.")
    check_agreement(path, config, student, teacher, partial(_is_averaged, scope=teacher_scope(settings)))
    if teacher is not None:
        # In pre-norm models the original also averages the final norm, and then uses the student's.
        teacher = {key: tensor for key, tensor in teacher.items() if not key.startswith("norm.")}
    pretraining = describe_pretraining(settings, [modality.name for modality in config.frontends])

    return Converted(config, student, teacher, notes, pretraining, transfer)


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
    with explained(path):
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
