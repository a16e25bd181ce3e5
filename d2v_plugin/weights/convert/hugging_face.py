"""Hugging Face's data2vec 1.0 models <-> ours: ``Data2VecAudioModel``, ``Data2VecTextModel``, ``Data2VecVisionModel``.

Features are equal to 1e-5 in fp32, with one exception: on padded batches of speech Hugging Face computes what fairseq did, which
is ``original_padding: true`` of our configuration.

Hugging Face's base models have no prediction head: importing gives ``head_layers: 0``, and exporting leaves the head out. What
else is missing in a source (the embedding of masked positions) is zero.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.models.data2vec1.base import Data2Vec1Model
from d2v_plugin.models.data2vec1.config import AudioConfig, Data2Vec1ModelConfig, ImageConfig, TextConfig
from d2v_plugin.models.families import create_model
from d2v_plugin.weights.state import State

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# Ours -> Hugging Face's, applied one after the other.
AUDIO_NAMES = {
    r"^(feature_extractor\.conv_layers\.\d+)\.0\.": r"\1.conv.",
    r"^(feature_extractor\.conv_layers\.\d+)\.2\.1\.": r"\1.layer_norm.",
    r"^layer_norm\.": "feature_projection.layer_norm.",
    r"^post_extract_proj\.": "feature_projection.projection.",
    r"^mask_emb$": "masked_spec_embed",
    r"^encoder\.pos_conv\.(\d+)\.0\.": r"encoder.pos_conv_embed.layers.\1.conv.",
    r"\.self_attn_layer_norm\.": ".layer_norm.",
    r"\.self_attn\.": ".attention.",
    r"\.fc1\.": ".feed_forward.intermediate_dense.",
    r"\.fc2\.": ".feed_forward.output_dense.",
}
TEXT_NAMES = {
    r"^encoder\.sentence_encoder\.embed_tokens\.": "embeddings.word_embeddings.",
    r"^encoder\.sentence_encoder\.embed_positions\.": "embeddings.position_embeddings.",
    r"^encoder\.sentence_encoder\.layernorm_embedding\.": "embeddings.LayerNorm.",
    r"^encoder\.sentence_encoder\.layers\.": "encoder.layer.",
    r"\.self_attn\.q_proj\.": ".attention.self.query.",
    r"\.self_attn\.k_proj\.": ".attention.self.key.",
    r"\.self_attn\.v_proj\.": ".attention.self.value.",
    r"\.self_attn\.out_proj\.": ".attention.output.dense.",
    r"\.self_attn_layer_norm\.": ".attention.output.LayerNorm.",
    r"\.fc1\.": ".intermediate.dense.",
    r"\.fc2\.": ".output.dense.",
    r"\.final_layer_norm\.": ".output.LayerNorm.",
}
VISION_NAMES = {
    r"^cls_emb$": "embeddings.cls_token",
    r"^mask_emb$": "embeddings.mask_token",
    r"^patch_embed\.conv\.": "embeddings.patch_embeddings.projection.",
    r"^encoder\.rel_pos_bias\.": "encoder.relative_position_bias.",
    r"^encoder\.norm\.": "layernorm.",
    r"^encoder\.blocks\.": "encoder.layer.",
    r"\.attn\.proj\.": ".attention.output.dense.",
    r"\.attn\.relative_position_bias_table$": ".attention.attention.relative_position_bias.relative_position_bias_table",
    r"\.attn\.": ".attention.attention.",
    r"\.mlp\.0\.": ".intermediate.dense.",
    r"\.mlp\.2\.": ".output.dense.",
    r"\.norm1\.": ".layernorm_before.",
    r"\.norm2\.": ".layernorm_after.",
    r"\.gamma_": ".lambda_",
}


def convert_hugging_face(src_dir: Path) -> tuple[Data2Vec1ModelConfig, State]:
    """Read a folder of ``save_pretrained``; models with a head on top give the model below it.

    :returns: configuration and weights of a model of the family ``data2vec1``, in fp32.
    :raises CheckpointError: the folder cannot be read, holds something else, or uses what only Hugging Face has.
    """
    from transformers import AutoConfig, AutoModel

    try:
        source = AutoConfig.from_pretrained(src_dir, local_files_only=True)
        if source.model_type not in ("data2vec-audio", "data2vec-text", "data2vec-vision"):
            raise CheckpointError(f"{src_dir} holds a model of the type `{source.model_type}`, not data2vec 1.0.")
        weights = AutoModel.from_pretrained(src_dir, local_files_only=True, dtype=torch.float32).state_dict()
    except (OSError, ValueError) as ex:
        if isinstance(ex, CheckpointError):
            raise
        raise CheckpointError(f"{src_dir} is not a folder of Hugging Face's `save_pretrained`: {ex}") from ex

    config = _import_config(source)

    return config, _import_weights(config, weights)


def export_hugging_face(model: Data2Vec1Model, out_dir: Path) -> None:
    """Write a folder that ``from_pretrained`` of ``AutoModel`` and of the model's class loads.

    :raises CheckpointError: the model uses something that Hugging Face's does not have.
    """
    config = _export_config(model.config)
    weights = _export_weights(model)

    with torch.device("meta"):
        exported = _create_hugging_face(config)
    exported.load_state_dict(weights, assign=True)
    exported.save_pretrained(out_dir)


def _import_config(source: PretrainedConfig) -> Data2Vec1ModelConfig:
    _require(source, hidden_act="gelu")
    common: dict[str, Any] = {
        "dim": source.hidden_size,
        "ffn_dim": source.intermediate_size,
        "depth": source.num_hidden_layers,
        "num_heads": source.num_attention_heads,
        "norm_eps": source.layer_norm_eps,
        "head_layers": 0,
    }
    match source.model_type:
        case "data2vec-audio":
            return _import_audio(source, common)
        case "data2vec-text":
            return _import_text(source, common)
        case _:
            return _import_vision(source, common)


def _import_audio(source: PretrainedConfig, common: dict[str, Any]) -> Data2Vec1ModelConfig:
    _require(source, feat_extract_activation="gelu", conv_bias=False, add_adapter=False)
    if source.conv_pos_kernel_size < 3:
        raise CheckpointError(f"`conv_pos_kernel_size` must be at least 3, but is {source.conv_pos_kernel_size}.")
    audio = AudioConfig(
        conv_layers=list(zip(source.conv_dim, source.conv_kernel, source.conv_stride, strict=True)),
        position_width=source.conv_pos_kernel_size * source.num_conv_pos_embeddings,
        position_groups=source.num_conv_pos_embedding_groups,
        position_depth=source.num_conv_pos_embeddings,
        input_dropout=source.feat_proj_dropout,
    )

    return Data2Vec1ModelConfig(
        audio=audio,
        dropout=source.hidden_dropout,
        attention_dropout=source.attention_dropout,
        activation_dropout=source.activation_dropout,
        layer_drop=source.layerdrop,
        **common,
    )


def _import_text(source: PretrainedConfig, common: dict[str, Any]) -> Data2Vec1ModelConfig:
    _require(source, position_embedding_type="absolute")
    if source.pad_token_id is None:
        raise CheckpointError("`pad_token_id` must be given.")
    text = TextConfig(
        vocab_size=source.vocab_size,
        pad_idx=source.pad_token_id,
        max_positions=source.max_position_embeddings - source.pad_token_id - 1,
    )

    return Data2Vec1ModelConfig(
        text=text, dropout=source.hidden_dropout_prob, attention_dropout=source.attention_probs_dropout_prob, **common
    )


def _import_vision(source: PretrainedConfig, common: dict[str, Any]) -> Data2Vec1ModelConfig:
    _require(source, use_absolute_position_embeddings=False)
    if source.use_relative_position_bias and source.use_shared_relative_position_bias:
        raise CheckpointError("Relative positions must be shared or per layer, but this model has both.")
    for name in ("image_size", "patch_size"):
        if not isinstance(getattr(source, name), int):
            raise CheckpointError(f"`{name}` must be one number, but is {getattr(source, name)}.")
    tables = "per_layer" if source.use_relative_position_bias else "none"
    image = ImageConfig(
        image_size=source.image_size,
        patch_size=source.patch_size,
        num_channels=source.num_channels,
        layer_scale=source.layer_scale_init_value if source.layer_scale_init_value > 0 else None,
        relative_positions="shared" if source.use_shared_relative_position_bias else tables,  # type: ignore[arg-type]
        final_norm=not source.use_mean_pooling,
    )

    return Data2Vec1ModelConfig(
        image=image,
        dropout=source.hidden_dropout_prob,
        attention_dropout=source.attention_probs_dropout_prob,
        drop_path=source.drop_path_rate,
        **common,
    )


def _require(source: PretrainedConfig, **values: object) -> None:
    for name, value in values.items():
        if getattr(source, name) != value:
            raise CheckpointError(f"`{name}` must be {value!r}, but is {getattr(source, name)!r}; data2vec has nothing else.")


def _import_weights(config: Data2Vec1ModelConfig, weights: State) -> State:
    if config.text is not None:
        # Segments do not exist in data2vec: what the only one adds becomes part of the positions.
        positions = weights["embeddings.position_embeddings.weight"].clone()
        positions[config.text.pad_idx + 1 :] += weights["embeddings.token_type_embeddings.weight"][0]
        weights = weights | {"embeddings.position_embeddings.weight": positions}
    if config.image is not None:
        weights = _join_projections(weights)

    with torch.device("meta"):
        expected = create_model(config).state_dict()
    state, missing = {}, []
    for name, tensor in expected.items():
        source_name = _rename(config, name)
        if source_name in weights:
            state[name] = weights[source_name]
        elif name == "mask_emb":
            state[name] = torch.zeros(tensor.shape)
        else:
            missing.append(source_name)
    if missing:
        raise CheckpointError(f"The weights lack {', '.join(missing[:5])}{' and others' if len(missing) > 5 else ''}.")

    return state


def _join_projections(weights: State) -> State:
    """BEiT's fused projection: ``query``, ``key`` and ``value`` of a layer -> ``qkv``, ``q_bias`` and ``v_bias``."""
    joined = dict(weights)
    for name in weights:
        if name.endswith(".attention.query.weight"):
            prefix = name.removesuffix("query.weight")
            parts = [weights[f"{prefix}{part}.weight"] for part in ("query", "key", "value")]
            joined[f"{prefix}qkv.weight"] = torch.cat(parts)
            joined[f"{prefix}q_bias"] = weights[f"{prefix}query.bias"]
            joined[f"{prefix}v_bias"] = weights[f"{prefix}value.bias"]

    return joined


def _rename(config: Data2Vec1ModelConfig, name: str) -> str:
    """Our name of a parameter -> Hugging Face's."""
    names = AUDIO_NAMES if config.audio is not None else TEXT_NAMES if config.text is not None else VISION_NAMES
    for pattern, replacement in names.items():
        name = re.sub(pattern, replacement, name)

    return name


def _export_config(config: Data2Vec1ModelConfig) -> PretrainedConfig:
    from transformers import Data2VecAudioConfig, Data2VecTextConfig, Data2VecVisionConfig

    common: dict[str, Any] = {
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "layer_norm_eps": config.norm_eps,
        "attention_dropout" if config.audio is not None else "attention_probs_dropout_prob": config.attention_dropout,
        "hidden_dropout" if config.audio is not None else "hidden_dropout_prob": config.dropout,
    }
    if (audio := config.audio) is not None:
        if audio.conv_norm != "layer_norm":
            raise CheckpointError("`audio.conv_norm` must be layer_norm; Hugging Face's model has nothing else.")

        return Data2VecAudioConfig(  # type: ignore[no-untyped-call]
            conv_dim=[channels for channels, _, _ in audio.conv_layers],
            conv_kernel=[kernel_size for _, kernel_size, _ in audio.conv_layers],
            conv_stride=[stride for _, _, stride in audio.conv_layers],
            conv_pos_kernel_size=audio.position_kernel,
            num_conv_pos_embeddings=audio.position_depth,
            num_conv_pos_embedding_groups=audio.position_groups,
            feat_proj_dropout=audio.input_dropout,
            activation_dropout=config.activation_dropout,
            layerdrop=config.layer_drop,
            **common,
        )
    if (text := config.text) is not None:
        return Data2VecTextConfig(  # type: ignore[no-untyped-call]
            vocab_size=text.vocab_size,
            pad_token_id=text.pad_idx,
            max_position_embeddings=text.max_positions + text.pad_idx + 1,
            type_vocab_size=1,
            **common,
        )

    image = config.image
    assert image is not None

    return Data2VecVisionConfig(  # type: ignore[no-untyped-call]
        image_size=image.image_size,
        patch_size=image.patch_size,
        num_channels=image.num_channels,
        layer_scale_init_value=0.0 if image.layer_scale is None else image.layer_scale,
        use_shared_relative_position_bias=image.relative_positions == "shared",
        use_relative_position_bias=image.relative_positions == "per_layer",
        use_mean_pooling=not image.final_norm,
        use_mask_token=True,
        drop_path_rate=config.drop_path,
        **common,
    )


def _export_weights(model: Data2Vec1Model) -> State:
    config = model.config
    # Heads and what belongs to a criterion have no place there.
    left_out = ("final_proj.", "encoder.regression_head.", "criterion.")
    weights = {
        _rename(config, name): tensor.detach().cpu().float()
        for name, tensor in model.state_dict().items()
        if not name.startswith(left_out)
    }
    if config.text is not None:
        weights["embeddings.token_type_embeddings.weight"] = torch.zeros(1, config.dim)
    if config.image is not None:
        weights = _split_projections(weights)

    return weights


def _split_projections(weights: State) -> State:
    split: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name.endswith(".qkv.weight"):
            for part, weight in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                split[name.replace(".qkv.", f".{part}.")] = weight.contiguous()
        else:
            name = re.sub(r"\.q_bias$", ".query.bias", name)
            split[re.sub(r"\.v_bias$", ".value.bias", name)] = tensor

    return split


def _create_hugging_face(config: Any) -> PreTrainedModel:
    from transformers import Data2VecAudioModel, Data2VecTextModel, Data2VecVisionModel

    match config.model_type:
        case "data2vec-audio":
            return Data2VecAudioModel(config)
        case "data2vec-text":
            return Data2VecTextModel(config, add_pooling_layer=False)  # type: ignore[no-untyped-call]
        case _:
            return Data2VecVisionModel(config, add_pooling_layer=False)
