"""Our data2vec 1.0 models -> Hugging Face's classes, with the heads of :mod:`d2v_plugin.weights.convert.hugging_face_heads`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.models.base import CRITERION_PREFIX
from d2v_plugin.models.data2vec1.base import Data2Vec1Model
from d2v_plugin.models.data2vec1.config import Data2Vec1ModelConfig
from d2v_plugin.weights.convert.hugging_face_heads import ExportedHead
from d2v_plugin.weights.convert.hugging_face_names import SETTINGS, rename
from d2v_plugin.weights.state import State

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def build_hugging_face(model: Data2Vec1Model, head: ExportedHead | None = None) -> PreTrainedModel:
    """The same model as an object of transformers; its ``save_pretrained`` writes a folder.

    What serves pre-training alone, such as the prediction head, has no place there.

    :param head: None = the encoder alone.
    :raises CheckpointError: the model uses something that Hugging Face's does not have.
    """
    config = _export_config(model.config)
    weights = _export_weights(model)
    if head is not None:
        config.update(head.settings)

    with torch.device("meta"):
        exported = _create_hugging_face(config, None if head is None else head.architecture)
    if head is not None:
        # The norm of the mean is a part of the vision encoder there.
        weights = {**weights, **{key: t for key, t in head.weights.items() if key.startswith("pooler.")}}
        weights = {f"{exported.base_model_prefix}.{key}": tensor for key, tensor in weights.items()}
        weights |= {key: t.detach().cpu().float() for key, t in head.weights.items() if not key.startswith("pooler.")}
    if odd := sorted(weights.keys() ^ exported.state_dict().keys()):
        raise CheckpointError(
            f"{type(exported).__name__} is another architecture than this model: only one of them has {', '.join(odd[:3])}"
            f"{f' and {len(odd) - 3} others' if len(odd) > 3 else ''}."
        )
    exported.load_state_dict(weights, assign=True)

    exported.eval()  # type: ignore[no-untyped-call]

    return exported


def _export_config(config: Data2Vec1ModelConfig) -> PretrainedConfig:
    from transformers import Data2VecAudioConfig, Data2VecTextConfig, Data2VecVisionConfig

    def rename_settings(model_type: str, part: object) -> dict[str, Any]:
        tables = zip((config, part), SETTINGS[model_type], strict=True)
        return {theirs: getattr(section, ours) for section, names in tables for ours, theirs in names.items()}

    if (audio := config.audio) is not None:
        if audio.conv_norm != "layer_norm":
            raise CheckpointError("`audio.conv_norm` must be layer_norm; Hugging Face's model has nothing else.")
        if audio.num_channels != 1:
            raise CheckpointError(f"`audio.num_channels` is {audio.num_channels}, but Hugging Face's model takes one channel.")

        return Data2VecAudioConfig(  # type: ignore[no-untyped-call]
            conv_dim=[channels for channels, _, _ in audio.conv_layers],
            conv_kernel=[kernel_size for _, kernel_size, _ in audio.conv_layers],
            conv_stride=[stride for _, _, stride in audio.conv_layers],
            conv_pos_kernel_size=audio.position_kernel,
            **rename_settings("data2vec-audio", audio),
        )
    if (text := config.text) is not None:
        return Data2VecTextConfig(  # type: ignore[no-untyped-call]
            max_position_embeddings=text.max_positions + text.pad_idx + 1,
            type_vocab_size=1,
            **rename_settings("data2vec-text", text),
        )

    image = config.image
    assert image is not None

    return Data2VecVisionConfig(  # type: ignore[no-untyped-call]
        layer_scale_init_value=0.0 if image.layer_scale is None else image.layer_scale,
        use_shared_relative_position_bias=image.relative_positions == "shared",
        use_relative_position_bias=image.relative_positions == "per_layer",
        use_mean_pooling=not image.final_norm,
        use_mask_token=True,
        **rename_settings("data2vec-vision", image),
    )


def _export_weights(model: Data2Vec1Model) -> State:
    config = model.config
    # Heads and what belongs to a criterion have no place there.
    left_out = ("final_proj.", "encoder.regression_head.", CRITERION_PREFIX)
    weights = {
        rename(config, name): tensor.detach().cpu().float()
        for name, tensor in model.state_dict().items()
        if not name.startswith(left_out)
    }
    if config.text is not None:
        weights["embeddings.token_type_embeddings.weight"] = torch.zeros(1, config.dim)
        positions = "embeddings.position_embeddings.weight"
        weights[positions] = weights[positions] * config.text.position_scale
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


def _create_hugging_face(config: PretrainedConfig, architecture: str | None) -> PreTrainedModel:
    import transformers

    if architecture is not None:
        return getattr(transformers, architecture)(config)  # type: ignore[no-any-return]
    match config.model_type:
        case "data2vec-audio":
            return transformers.Data2VecAudioModel(config)  # type: ignore[arg-type]
        case "data2vec-text":
            return transformers.Data2VecTextModel(config, add_pooling_layer=False)  # type: ignore[no-untyped-call]
        case _:
            return transformers.Data2VecVisionModel(config, add_pooling_layer=False)  # type: ignore[arg-type]
