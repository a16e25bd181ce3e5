"""The encoder of a data2vec 1.0 model under the names of data2vec 2.0, for starting a run from it.

Both families are built of the same parts. With the same settings (no ALiBi, the same position convolutions) speech and text
compute the same features. Pre-norm models of 2.0 have one norm more, before the blocks; it starts without scale and offset.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from d2v_plugin.core.batch import Modality
from d2v_plugin.models.data2vec1.config import Data2Vec1ModelConfig
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.weights.state import State

_AUDIO: Final = "modality_encoders.AUDIO."
_IMAGE: Final = "modality_encoders.IMAGE."
_TEXT: Final = "modality_encoders.TEXT."

_RULES: Final = (
    (r"feature_extractor\.(.+)", _AUDIO + r"local_encoder.\1"),
    (r"layer_norm\.(.+)", _AUDIO + r"project_features.1.\1"),
    (r"post_extract_proj\.(.+)", _AUDIO + r"project_features.2.\1"),
    (r"patch_embed\.conv\.(.+)", _IMAGE + r"local_encoder.proj.\1"),
    (r"cls_emb", f"{_IMAGE}extra_tokens"),
    (r"encoder\.pos_embed", f"{_IMAGE}fixed_positional_encoder.positions"),
    (r"encoder\.norm\.(.+)", r"norm.\1"),
    (r"encoder\.sentence_encoder\.(embed_tokens|embed_positions|layernorm_embedding)\.(.+)", _TEXT + r"local_encoder.\1.\2"),
)
_BLOCK_RULES: Final = (
    (r"self_attn_layer_norm\.(.+)", r"norm1.\1"),
    (r"final_layer_norm\.(.+)", r"norm2.\1"),
    (r"self_attn\.out_proj\.(.+)", r"attn.proj.\1"),
    (r"attn\.proj\.(.+)", r"attn.proj.\1"),
    (r"fc1\.(.+)|mlp\.0\.(.+)", r"mlp.fc1.\1\2"),
    (r"fc2\.(.+)|mlp\.2\.(.+)", r"mlp.fc2.\1\2"),
    (r"norm([12])\.(.+)", r"norm\1.\2"),
    (r"attn\.qkv\.weight", "attn.qkv.weight"),
)


def translate(config: Data2Vec1ModelConfig, state: Mapping[str, Tensor], model: Data2VecConfig) -> tuple[State, list[str]]:
    """Give the parameters of a model of 1.0 the names that they have in one of 2.0.

    :param state: complete.
    :param model: of the same modality.
    :returns: the parameters, and the names of those that have no place.
    """
    prenet_depth = model.frontends[config.modality].prenet_depth
    prefix = f"modality_encoders.{config.modality.name}."
    translated: State = {}
    left_out: list[str] = []
    blocks: dict[int, State] = {}
    for key, tensor in state.items():
        if (found := re.fullmatch(r"encoder\.(?:sentence_encoder\.)?(?:layers|blocks)\.(\d+)\.(.+)", key)) is not None:
            blocks.setdefault(int(found[1]), {})[found[2]] = tensor
        elif (found := re.fullmatch(r"encoder\.pos_conv\.(\d+)\.(.+)", key)) is not None:
            translated[f"{prefix}relative_positional_encoder.{int(found[1]) + 1}.{found[2]}"] = tensor
        elif (found := re.fullmatch(r"encoder\.layer_norm\.(.+)", key)) is not None:
            translated[f"norm.{found[1]}" if config.norm_first else f"{prefix}context_encoder.norm.{found[1]}"] = tensor
        elif (new := _apply(_RULES, key)) is not None:
            translated[new] = tensor
        else:
            left_out.append(key)
    for number, block in blocks.items():
        start = f"{prefix}context_encoder.blocks.{number}" if number < prenet_depth else f"blocks.{number - prenet_depth}"
        new_block, unused = _translate_block(block)
        translated |= {f"{start}.{key}": tensor for key, tensor in new_block.items()}
        kind = "layers" if config.image is None else "blocks"
        left_out += [f"encoder.{kind}.{number}.{key}" for key in unused]

    return translated, left_out


def find_differences(config: Data2Vec1ModelConfig, model: Data2VecConfig) -> Iterator[str]:
    """Settings that shapes do not show, or whose difference explains the shapes better, as values for the model."""
    modality = config.modality
    frontend = model.frontends[modality]
    is_pre_norm = config.norm_first or modality is Modality.IMAGE
    wanted: dict[str, tuple[Any, Any]] = {
        "dim": (config.dim, model.dim),
        "num_heads": (config.num_heads, model.num_heads),
        "depth": (config.depth - frontend.prenet_depth, model.depth),
        "mlp_ratio": (config.ffn_dim / config.dim, model.mlp_ratio),
        "norm_first": (is_pre_norm, model.norm_first),
        "norm_eps": (config.norm_eps, model.norm_eps),
    }
    names = {
        Modality.AUDIO: ("num_channels", "conv_layers", "conv_norm", "conv_bias"),
        Modality.IMAGE: ("patch_size", "num_channels"),
        Modality.TEXT: ("vocab_size", "pad_idx", "max_positions"),
    }
    source = config.frontends[modality]
    wanted |= {f"{modality.value}.{name}": (getattr(source, name), getattr(frontend, name, None)) for name in names[modality]}
    for name, (theirs, ours) in wanted.items():
        if theirs != ours:
            yield f"`{name}` is {theirs} in the checkpoint, but {ours} in the model (`model.config_overrides.{name}`)"


def _translate_block(block: Mapping[str, Tensor]) -> tuple[State, list[str]]:
    block = dict(block)
    if "self_attn.q_proj.weight" in block:
        for kind in ("weight", "bias"):
            block[f"attn.qkv.{kind}"] = torch.cat([block.pop(f"self_attn.{part}_proj.{kind}") for part in "qkv"])
    else:
        biases = block.pop("attn.q_bias"), block.pop("attn.v_bias")
        block["attn.qkv.bias"] = torch.cat([biases[0], torch.zeros_like(biases[0]), biases[1]])
    for gamma, name in (("gamma_1", "attn.proj"), ("gamma_2", "mlp.2")):
        if (scale := block.pop(gamma, None)) is not None:
            # (D) scales the outputs.
            block[f"{name}.weight"] = scale.unsqueeze(1) * block[f"{name}.weight"]
            block[f"{name}.bias"] = scale * block[f"{name}.bias"]
    new: State = {}
    unused: list[str] = []
    for key, tensor in block.items():
        renamed = key if key == "attn.qkv.bias" else _apply(_BLOCK_RULES, key)
        if renamed is None:
            unused.append(key)
        else:
            new[renamed] = tensor
    return new, unused


def _apply(rules: tuple[tuple[str, str], ...], key: str) -> str | None:
    """The new name by the first rule for it; None if there is none."""
    return next((re.sub(pattern, ours, key) for pattern, ours in rules if re.fullmatch(pattern, key)), None)
