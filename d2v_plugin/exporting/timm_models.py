"""Models of timm: which one computes the same, with which arguments, and our weights under its names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.criteria.supervised.classification import ClassificationCriterion
from d2v_plugin.exporting.exportable import Exportable
from d2v_plugin.models.base import CRITERION_PREFIX
from d2v_plugin.models.data2vec1.config import Data2Vec1ModelConfig
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.weights.state import State

VIT: Final = "data2vec2_vit"
"""The module for data2vec 2.0, which no model of timm computes."""

BEIT: Final = "beit_base_patch16_224"
"""timm's BEiT; arguments make it any size."""

# Ours -> timm's, one after the other.
_BEIT_NAMES: Final = {
    r"^cls_emb$": "cls_token",
    r"^patch_embed\.conv\.": "patch_embed.proj.",
    r"^encoder\.(rel_pos_bias|blocks|norm)\.": r"\1.",
    r"\.mlp\.0\.": ".mlp.fc1.",
    r"\.mlp\.2\.": ".mlp.fc2.",
}
_VIT_NAMES: Final = {
    r"^modality_encoders\.IMAGE\.extra_tokens$": "cls_token",
    r"^modality_encoders\.IMAGE\.local_encoder\.": "patch_embed.",
    r"^modality_encoders\.IMAGE\.fixed_positional_encoder\.positions$": "pos_embed",
    r"^modality_encoders\.IMAGE\.context_encoder\.norm\.": "norm_pre.",
}


@dataclass(frozen=True)
class TimmModel:
    """A model in timm's terms."""

    architecture: str
    """What ``timm.create_model`` knows, or the module that the folder carries."""

    arguments: dict[str, Any]
    """Of its constructor."""

    norm_eps: float

    weights: State


def describe_beit(exportable: Exportable) -> TimmModel:
    """data2vec 1.0: pre-norm blocks with relative positions.

    :raises CheckpointError: the head is none of BEiT's.
    """
    config = exportable.model.config
    assert isinstance(config, Data2Vec1ModelConfig) and config.image is not None
    image = config.image
    head = _describe_head(exportable, config.norm_eps)
    if head["num_classes"] and head.pop("fc_norm") == image.final_norm:
        raise CheckpointError(
            f"timm's BEiT has either the norm of the mean, or the CLS token after the final norm, but {exportable.path} has "
            f"`image.final_norm: {image.final_norm}` and the same in its head. Export the encoder alone: `head=false`."
        )
    arguments = {
        **_describe_sizes(config, config.ffn_dim / config.dim),
        "depth": config.depth,
        "img_size": image.image_size,
        "patch_size": image.patch_size,
        "in_chans": image.num_channels,
        "init_values": image.layer_scale,
        "use_rel_pos_bias": image.relative_positions == "per_layer",
        "use_shared_rel_pos_bias": image.relative_positions == "shared",
        "use_fc_norm": not image.final_norm,
        "num_classes": head["num_classes"],
        "global_pool": head["global_pool"],
    }
    weights = _rename(exportable.model.state_dict(), _BEIT_NAMES, left_out=("mask_emb", "final_proj.", CRITERION_PREFIX))
    weights |= _head_weights(exportable)
    if not image.final_norm and "fc_norm.weight" not in weights:
        weights |= {"fc_norm.weight": torch.ones(config.dim), "fc_norm.bias": torch.zeros(config.dim)}

    return TimmModel(BEIT, arguments, config.norm_eps, weights)


def describe_vit(exportable: Exportable) -> TimmModel:
    """data2vec 2.0: post-norm blocks, the prenet first.

    :raises CheckpointError: the model or its head has something that timm's layers have not.
    """
    config = exportable.model.config
    assert isinstance(config, Data2VecConfig) and config.image is not None
    image = config.image
    for is_same, difference in (
        (not config.norm_first, "`norm_first` is true"),
        (config.norm_affine, "`norm_affine` is false"),
        (image.alibi is None, "`image.alibi` is set"),
        (image.num_extra_tokens == 1, f"`image.num_extra_tokens` is {image.num_extra_tokens}, not 1"),
        (image.embed_dim in (None, config.dim), f"`image.embed_dim` is {image.embed_dim}"),
        (image.fixed_positions, "`image.fixed_positions` is false"),
    ):
        if not is_same:
            raise CheckpointError(f"{exportable.path} has no place in timm, where no layer does that: {difference}.")

    head = _describe_head(exportable, config.norm_eps)
    arguments = {
        **_describe_sizes(config, config.mlp_ratio),
        "depth": image.prenet_depth + config.depth,
        "img_size": image.image_size,
        "patch_size": image.patch_size,
        "in_chans": image.num_channels,
        "final_norm": head["fc_norm"],
        **head,
    }
    names: dict[str, str | Callable[[re.Match[str]], str]] = {
        **_VIT_NAMES,
        r"^blocks\.(\d+)\.": lambda found: f"blocks.{int(found[1]) + image.prenet_depth}.",
        r"^modality_encoders\.IMAGE\.context_encoder\.blocks\.": "blocks.",
    }
    left_out = (
        "modality_encoders.IMAGE.decoder.",
        "modality_encoders.TEXT.",
        "modality_encoders.AUDIO.",
        "shared_decoder.",
        CRITERION_PREFIX,
    )
    weights = _rename(exportable.model.state_dict(), names, left_out=left_out)

    return TimmModel(VIT, arguments, config.norm_eps, weights | _head_weights(exportable))


def _describe_sizes(config: Data2VecConfig | Data2Vec1ModelConfig, mlp_ratio: float) -> dict[str, Any]:
    return {"embed_dim": config.dim, "num_heads": config.num_heads, "mlp_ratio": mlp_ratio, "qkv_bias": True}


def _describe_head(exportable: Exportable, norm_eps: float) -> dict[str, Any]:
    """
    :raises CheckpointError: timm's models have no such head.
    """
    criterion = exportable.criterion
    if criterion is None:
        return {"num_classes": 0, "global_pool": "token", "fc_norm": False}
    differences = []
    # The very class: what an extension derives from it may compute anything.
    if type(criterion) is not ClassificationCriterion:
        differences.append(f"it is a {type(criterion).__name__}")
    elif criterion.config.hidden:
        differences.append("`hidden` is true")
    elif criterion.config.norm and criterion.config.norm_eps != norm_eps:
        differences.append(f"`norm_eps` is {criterion.config.norm_eps}, that of the model {norm_eps}")
    if differences:
        raise CheckpointError(
            f"timm has no place for the head of {exportable.path}: {differences[0]}. Export the encoder alone: `head=false`."
        )
    assert isinstance(criterion, ClassificationCriterion)
    pool = "avg" if criterion.config.pooling == "mean" else "token"

    return {"num_classes": criterion.head.proj.out_features, "global_pool": pool, "fc_norm": criterion.config.norm}


def _head_weights(exportable: Exportable) -> State:
    if exportable.criterion is None:
        return {}
    state = exportable.criterion.state_dict()
    return _rename(state, {r"^head\.norm\.": "fc_norm.", r"^head\.proj\.": "head."}, left_out=())


def _rename(
    state: Mapping[str, Tensor], names: Mapping[str, str | Callable[[re.Match[str]], str]], *, left_out: tuple[str, ...]
) -> State:
    renamed = {}
    for name, tensor in state.items():
        if not name.startswith(left_out):
            for pattern, replacement in names.items():
                name = re.sub(pattern, replacement, name)
            renamed[name] = tensor.detach().float()

    return renamed
