"""Hugging Face's data2vec 1.0 models <-> ours: ``Data2VecAudioModel``, ``Data2VecTextModel``, ``Data2VecVisionModel``.

Features are equal to 1e-5 in fp32, with one exception: on padded batches of speech Hugging Face computes what fairseq did, which
is ``original_padding: true`` of our configuration.

Hugging Face's base models have no prediction head: importing gives ``head_layers: 0``, and exporting leaves the head out. What
else is missing in a source (the embedding of masked positions) is zero.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.core.log import log
from d2v_plugin.models.data2vec1.base import Data2Vec1Model
from d2v_plugin.models.data2vec1.config import AudioConfig, Data2Vec1ModelConfig, ImageConfig, TextConfig
from d2v_plugin.models.families import create_model
from d2v_plugin.weights.convert.hugging_face_names import AUDIO_NAMES, SETTINGS, TEXT_NAMES, VISION_NAMES
from d2v_plugin.weights.state import Mismatch, State
from d2v_plugin.weights.torch_file import POINTER, is_pointer

# What lies on top of the encoder and has no place here; and what may be missing, because only pre-training uses it.
_HEADS: Final = {"pooler", "adapter"}
_MASKS: Final = {"masked_spec_embed", "embeddings.mask_token"}

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def convert_hugging_face(src_dir: Path) -> tuple[Data2Vec1ModelConfig, State]:
    """Read a folder of ``save_pretrained``; models with a head on top give the model below it.

    :returns: configuration and weights of a model of the family ``data2vec1``, in fp32.
    :raises CheckpointError: the folder cannot be read, holds something else, or uses what only Hugging Face has.
    """
    from transformers import AutoConfig, AutoModel

    try:
        source = AutoConfig.from_pretrained(src_dir, local_files_only=True)
        if source.model_type not in SETTINGS:
            raise CheckpointError(f"{src_dir} holds a model of the type `{source.model_type}`, not data2vec 1.0.")
        model, info = AutoModel.from_pretrained(
            src_dir, local_files_only=True, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except CheckpointError:
        raise
    except Exception as ex:  # transformers lets through whatever the files provoke
        pointers = [path for path in sorted(src_dir.glob("*")) if path.is_file() and is_pointer(path)]
        if pointers:
            raise CheckpointError(f"{pointers[0]}: {POINTER}") from ex
        reason = " ".join(f"{type(ex).__name__}: {ex}".split())
        raise CheckpointError(f"{src_dir} is not a folder of Hugging Face's `save_pretrained`: {reason}") from ex
    _check_loading(src_dir, model, info)

    config = _import_config(source)
    # Zero is no mask: what transformers draws for a missing embedding would be another one each time.
    weights = {key: tensor for key, tensor in model.state_dict().items() if key not in info["missing_keys"]}

    return config, _import_weights(config, weights)


def _check_loading(src_dir: Path, model: PreTrainedModel, info: Mapping[str, Any]) -> None:
    """Check that transformers found what it looked for: it draws at random what is missing, and warns at most.

    :param info: what ``from_pretrained`` says of the loading.
    """
    base = f"{model.base_model_prefix}."
    parts = {key.partition(".")[0] for key in model.state_dict()} - _HEADS
    unexpected = sorted(key.removeprefix(base) for key in info["unexpected_keys"])
    # Versions of transformers list the keys alone, or each with two shapes.
    mismatched = [each if isinstance(each, str) else each[0] for each in info["mismatched_keys"]]
    wrong = {key: f"not {tuple(model.state_dict()[key].shape)}, as the configuration says" for key in mismatched}
    Mismatch(
        missing=sorted(
            key for key in set(info["missing_keys"]) - wrong.keys() if key.partition(".")[0] not in _HEADS and key not in _MASKS
        ),
        unexpected=[key for key in unexpected if key.partition(".")[0] in parts],
        wrong={key: text for key, text in wrong.items() if key.partition(".")[0] not in _HEADS},
    ).raise_if_any(f"{src_dir} does not hold the weights of the model that its configuration describes:")
    if left_out := [key for key in unexpected if key.partition(".")[0] not in parts]:
        log.warning("Left out {} tensors of what lies on top of the encoder, such as `{}`.", len(left_out), left_out[0])


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
    model, part = SETTINGS[source.model_type]
    common = {ours: getattr(source, theirs) for ours, theirs in model.items()} | {"head_layers": 0}
    settings = {ours: getattr(source, theirs) for ours, theirs in part.items()}
    match source.model_type:
        case "data2vec-audio":
            return Data2Vec1ModelConfig(audio=_import_audio(source, settings), **common)
        case "data2vec-text":
            return Data2Vec1ModelConfig(text=_import_text(source, settings), **common)
        case _:
            return Data2Vec1ModelConfig(image=_import_image(source, settings), **common)


def _import_audio(source: PretrainedConfig, settings: dict[str, Any]) -> AudioConfig:
    _require(source, feat_extract_activation="gelu", conv_bias=False, add_adapter=False)
    if source.conv_pos_kernel_size < 3:
        raise CheckpointError(f"`conv_pos_kernel_size` must be at least 3, but is {source.conv_pos_kernel_size}.")
    return AudioConfig(
        conv_layers=list(zip(source.conv_dim, source.conv_kernel, source.conv_stride, strict=True)),
        position_width=source.conv_pos_kernel_size * source.num_conv_pos_embeddings,
        **settings,
    )


def _import_text(source: PretrainedConfig, settings: dict[str, Any]) -> TextConfig:
    _require(source, position_embedding_type="absolute")
    if source.pad_token_id is None:
        raise CheckpointError("`pad_token_id` must be given.")
    return TextConfig(max_positions=source.max_position_embeddings - source.pad_token_id - 1, **settings)


def _import_image(source: PretrainedConfig, settings: dict[str, Any]) -> ImageConfig:
    _require(source, use_absolute_position_embeddings=False)
    if source.use_relative_position_bias and source.use_shared_relative_position_bias:
        raise CheckpointError("Relative positions must be shared or per layer, but this model has both.")
    for name in ("image_size", "patch_size"):
        if not isinstance(getattr(source, name), int):
            raise CheckpointError(f"`{name}` must be one number, but is {getattr(source, name)}.")
    tables = "per_layer" if source.use_relative_position_bias else "none"

    return ImageConfig(
        layer_scale=source.layer_scale_init_value if source.layer_scale_init_value > 0 else None,
        relative_positions="shared" if source.use_shared_relative_position_bias else tables,  # type: ignore[arg-type]
        final_norm=not source.use_mean_pooling,
        **settings,
    )


def _require(source: PretrainedConfig, **values: object) -> None:
    for name, value in values.items():
        # Version 5 of their library has dropped settings whose other values it no longer has.
        if (given := getattr(source, name, value)) != value:
            raise CheckpointError(f"`{name}` must be {value!r}, but is {given!r}; data2vec has nothing else.")


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

    def rename(model_type: str, part: object) -> dict[str, Any]:
        tables = zip((config, part), SETTINGS[model_type], strict=True)
        return {theirs: getattr(section, ours) for section, names in tables for ours, theirs in names.items()}

    if (audio := config.audio) is not None:
        if audio.conv_norm != "layer_norm":
            raise CheckpointError("`audio.conv_norm` must be layer_norm; Hugging Face's model has nothing else.")

        return Data2VecAudioConfig(  # type: ignore[no-untyped-call]
            conv_dim=[channels for channels, _, _ in audio.conv_layers],
            conv_kernel=[kernel_size for _, kernel_size, _ in audio.conv_layers],
            conv_stride=[stride for _, _, stride in audio.conv_layers],
            conv_pos_kernel_size=audio.position_kernel,
            **rename("data2vec-audio", audio),
        )
    if (text := config.text) is not None:
        return Data2VecTextConfig(  # type: ignore[no-untyped-call]
            max_position_embeddings=text.max_positions + text.pad_idx + 1,
            type_vocab_size=1,
            **rename("data2vec-text", text),
        )

    image = config.image
    assert image is not None

    return Data2VecVisionConfig(  # type: ignore[no-untyped-call]
        layer_scale_init_value=0.0 if image.layer_scale is None else image.layer_scale,
        use_shared_relative_position_bias=image.relative_positions == "shared",
        use_relative_position_bias=image.relative_positions == "per_layer",
        use_mean_pooling=not image.final_norm,
        use_mask_token=True,
        **rename("data2vec-vision", image),
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
