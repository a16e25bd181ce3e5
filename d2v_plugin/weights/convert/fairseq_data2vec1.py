"""fairseq's data2vec 1.0 configurations and weights -> ours.

The weights keep fairseq's names, which are ours, except for what is no parameter (``version``, ``relative_position_index``).
The vision models that the authors published are not fairseq's but BEiT's; :mod:`image` converts them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.models.data2vec1.base import TeacherScope
from d2v_plugin.models.data2vec1.config import AudioConfig, Data2Vec1ModelConfig, ImageConfig, TextConfig
from d2v_plugin.weights.convert.fairseq_config import parse_conv_layers
from d2v_plugin.weights.convert.fairseq_info import describe_ema, describe_targets
from d2v_plugin.weights.convert.fairseq_keys import (
    EMA_KEYS,
    IMAGE_MASK_KEYS,
    LOSS_KEYS,
    SPEECH_MASK_KEYS,
    TARGET_KEYS,
    check_keys,
)
from d2v_plugin.weights.state import State

MODEL_NAMES: Final = ("data2vec_audio", "data2vec_text", "data2vec_vision")
"""Values of ``_name`` in fairseq's configurations of data2vec 1.0."""

_PRETRAINING_KEYS: Final = {*TARGET_KEYS, *LOSS_KEYS[:2], *EMA_KEYS, *SPEECH_MASK_KEYS, *IMAGE_MASK_KEYS}
_AUDIO_KEYS: Final = {
    "conv_feature_layers",
    "extractor_mode",
    "conv_pos",
    "conv_pos_groups",
    "pos_conv_depth",
    "feature_grad_mult",
    "dropout_input",
    "encoder_embed_dim",
    "encoder_ffn_embed_dim",
    "encoder_layers",
    "encoder_attention_heads",
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "encoder_layerdrop",
    "group_norm_target_layer",
    "ema_layers_only",
    "ema_transformer_only",
}
_TEXT_KEYS: Final = {"transformer", "head_layers", "ema_transformer_layers_only"}
_TRANSFORMER_KEYS: Final = {
    "encoder",
    "max_source_positions",
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "relu_dropout",
    "quant_noise",
}
_ENCODER_KEYS: Final = {"embed_dim", "ffn_embed_dim", "layers", "attention_heads", "layerdrop"}
_IMAGE_KEYS: Final = {
    "layer_scale_init_value",
    "embed_dim",
    "image_size",
    "patch_size",
    "in_channels",
    "shared_rel_pos_bias",
    "depth",
    "num_heads",
    "attention_dropout",
    "drop_path",
    "ema_transformer_only",
}


def convert_config(model: Mapping[str, Any], weights: State, *, pad_idx: int = 1) -> Data2Vec1ModelConfig:
    """Make our configuration of one of data2vec 1.0.

    :param model: the ``model`` section of a fairseq checkpoint's ``cfg``, with one of :data:`MODEL_NAMES` as ``_name``.
    :param weights: from :func:`convert_state_dict`; they tell the vocabulary, and whether there is a head.
    :raises CheckpointError: the model uses something that only fairseq has.
    """
    match model.get("_name"):
        case "data2vec_audio":
            return _audio(model, weights)
        case "data2vec_text":
            return _text(model, weights, pad_idx)
        case "data2vec_vision":
            return _vision(model)
        case name:
            raise CheckpointError(f"`_name` must be one of {', '.join(MODEL_NAMES)}, but is `{name}`.")


def convert_state_dict(model: Mapping[str, Any], weights: Mapping[str, Any]) -> State:
    """The student's weights under our names.

    :param model: see :func:`convert_config`.
    :param weights: the checkpoint's ``model``; a teacher in it is left out.
    """
    state: State = {}
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor) or _is_constant(name) or name.startswith("classification_heads."):
            continue
        # Names of earlier versions.
        name = re.sub(r"^decoder\.", "encoder.", name)
        name = name.replace(".emb_layer_norm.", ".layernorm_embedding.").replace(".lm_head.", ".regression_head.")
        name = re.sub(r"^final_proj\.0\.", "final_proj.", name)
        if model.get("_name") == "data2vec_vision" and name.startswith("final_proj."):
            continue  # never used in fairseq, and so never trained
        state[name] = tensor.float()
    # Fine-tuning drops the embedding of masked positions; this is what has its shape.
    alike = {"data2vec_audio": "post_extract_proj.bias", "data2vec_vision": "cls_emb"}.get(model.get("_name", ""))
    if alike in state and "mask_emb" not in state:
        state["mask_emb"] = torch.zeros_like(state[alike])

    return state


def convert_teacher(model: Mapping[str, Any], teacher: Mapping[str, Tensor]) -> State:
    """The teacher's weights under the student's names.

    What fairseq copies from the student instead of averaging it (position convolutions, embeddings) is among them.

    :param model: see :func:`convert_config`.
    :param teacher: the entry ``_ema`` (text: ``encoder._ema``) of the checkpoint's weights.
    """
    if teacher_scope(model) == "all":
        return convert_state_dict(model, teacher)
    prefix = "encoder.sentence_encoder." if model.get("_name") == "data2vec_text" else "encoder."
    return {f"{prefix}{name}": tensor.float() for name, tensor in teacher.items() if not _is_constant(name)}


def teacher_scope(model: Mapping[str, Any]) -> TeacherScope:
    """The parts that are averaged; see :data:`d2v_plugin.models.data2vec1.base.TeacherScope`."""
    match model.get("_name"):
        case "data2vec_audio" if model.get("ema_layers_only", True):
            return "layers"
        case "data2vec_text":
            return "layers" if model.get("ema_transformer_layers_only", True) else "encoder"
    return "encoder" if model.get("ema_transformer_only", True) else "all"


def describe_pretraining(model: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a criterion needs to go on, in the words of ``Data2Vec1Config`` except for the masks."""
    get, scope, targets = model.get, teacher_scope(model), describe_targets(model)
    loss_scale = get("loss_scale")
    match model.get("_name"):
        case "data2vec_audio":
            targets["group_norm_layers"] = get("group_norm_target_layer", False)
            # Nothing else transposes the layers, which have the time first; see TargetConfig.original_axes.
            is_transposed = targets["batch_norm_layers"] or targets["instance_norm_layers"]
            targets["original_axes"] = not is_transposed and (targets["group_norm_layers"] or targets["instance_norm"])
            if scope == "all":
                # A teacher with the convolutions hands out all layers, not the top ones.
                targets["num_layers"] = model["encoder_layers"]
        case "data2vec_text" if loss_scale is not None and loss_scale <= 0:
            loss_scale = None
        case "data2vec_vision" if loss_scale is not None and loss_scale <= 0:
            loss_scale = 1.0

    return {
        "ema": describe_ema(model),
        "teacher_scope": scope,
        "target_feature": "block" if get("end_of_block_targets", get("_name") == "data2vec_vision") else "ffn",
        "targets": targets,
        "loss_beta": get("loss_beta", 0.0),
        "loss_scale": loss_scale,
        "fairseq_masks": {key: value for key, value in model.items() if key in (*SPEECH_MASK_KEYS, *IMAGE_MASK_KEYS)},
    }


def _is_constant(name: str) -> bool:
    return name.rpartition(".")[2] in ("version", "relative_position_index")


def _audio(model: Mapping[str, Any], weights: State) -> Data2Vec1ModelConfig:
    get = model.get
    check_keys(model, "data2vec_audio", _AUDIO_KEYS | _PRETRAINING_KEYS)
    if get("pos_conv_depth", 1) < 2:
        raise CheckpointError("`pos_conv_depth` must be at least 2; no published model has another.")

    # Defaults are fairseq's, for checkpoints of versions that did not have a setting yet.
    return Data2Vec1ModelConfig(
        audio=AudioConfig(
            conv_layers=parse_conv_layers(model["conv_feature_layers"]),
            conv_norm="layer_norm" if get("extractor_mode") == "layer_norm" else "group_norm",
            position_width=get("conv_pos", 128),
            position_groups=get("conv_pos_groups", 16),
            position_depth=model["pos_conv_depth"],
            local_grad_scale=get("feature_grad_mult", 1.0),
            input_dropout=get("dropout_input", 0.0),
        ),
        dim=model["encoder_embed_dim"],
        ffn_dim=model["encoder_ffn_embed_dim"],
        depth=model["encoder_layers"],
        num_heads=model["encoder_attention_heads"],
        dropout=get("dropout", 0.1),
        attention_dropout=get("attention_dropout", 0.1),
        activation_dropout=get("activation_dropout", 0.0),
        layer_drop=get("encoder_layerdrop", 0.0),
        head_layers=1 if "final_proj.weight" in weights else 0,
    )


def _text(model: Mapping[str, Any], weights: State, pad_idx: int) -> Data2Vec1ModelConfig:
    transformer = model["transformer"]
    encoder = transformer["encoder"]
    check_keys(model, "data2vec_text", _TEXT_KEYS | _PRETRAINING_KEYS)
    check_keys(transformer, "transformer", _TRANSFORMER_KEYS, place="transformer.")
    check_keys(encoder, "encoder", _ENCODER_KEYS, place="transformer.encoder.")
    check_keys(transformer.get("quant_noise") or {}, "quant_noise", (), place="transformer.quant_noise.")
    embeddings = weights.get("encoder.sentence_encoder.embed_tokens.weight")

    return Data2Vec1ModelConfig(
        text=TextConfig(
            # Without embeddings the report of missing keys says so.
            vocab_size=2 if embeddings is None else embeddings.size(0),
            pad_idx=pad_idx,
            max_positions=transformer["max_source_positions"],
        ),
        dim=encoder["embed_dim"],
        ffn_dim=encoder["ffn_embed_dim"],
        depth=encoder["layers"],
        num_heads=encoder["attention_heads"],
        dropout=transformer.get("dropout", 0.1),
        attention_dropout=transformer.get("attention_dropout", 0.0),
        activation_dropout=transformer.get("activation_dropout", 0.0) or transformer.get("relu_dropout", 0.0),
        layer_drop=encoder.get("layerdrop", 0.0),
        head_layers=model.get("head_layers", 1) if "encoder.regression_head.0.weight" in weights else 0,
    )


def _vision(model: Mapping[str, Any]) -> Data2Vec1ModelConfig:
    get = model.get
    check_keys(model, "data2vec_vision", _IMAGE_KEYS | _PRETRAINING_KEYS)
    layer_scale, dim = get("layer_scale_init_value", 1e-4), get("embed_dim", 768)

    return Data2Vec1ModelConfig(
        image=ImageConfig(
            image_size=get("image_size", 224),
            patch_size=get("patch_size", 16),
            num_channels=get("in_channels", 3),
            layer_scale=layer_scale if layer_scale > 0 else None,
            relative_positions="shared" if get("shared_rel_pos_bias", True) else "per_layer",
        ),
        dim=dim,
        # `mlp_ratio` never reaches the blocks.
        ffn_dim=4 * dim,
        depth=get("depth", 12),
        num_heads=get("num_heads", 12),
        dropout=0.0,
        attention_dropout=get("attention_dropout", 0.0),
        drop_path=get("drop_path", 0.1),
        head_layers=0,
    )
