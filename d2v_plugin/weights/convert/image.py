"""ViT, MAE and BEiT of Hugging Face, and their authors' files -> data2vec 1.0's encoder for images, which computes the same.

All are pre-norm Transformers over patches and a CLS token. Learned (ViT, BEiT) or fixed (MAE) absolute positions become
``encoder.pos_embed``, that of the CLS token a part of it. Attention has no biases of keys here: they add the same to all logits
of a query, so that the softmax drops them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.models.data2vec1.config import Data2Vec1ModelConfig, ImageConfig
from d2v_plugin.weights.convert.transfer import Foreign, Names, Transfer, check_fixed, complete, rename, split_fused
from d2v_plugin.weights.state import Mismatch, State

_KEYS: Final = "biases of keys change nothing: the softmax drops them"
_HEAD: Final = "a head on top of the encoder"
_BLOCK: Final = r"encoder.blocks.\1."

HUGGING_FACE: Final = Names(
    rules=[
        (r"embeddings\.cls_token", "cls_emb"),
        (r"embeddings\.mask_token", "mask_emb"),
        (r"embeddings\.position_embeddings", "encoder.pos_embed"),
        (r"embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.conv.\1"),
        (r"encoder\.relative_position_bias\.(relative_position_bias_table)", r"encoder.rel_pos_bias.\1"),
        (r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)", _BLOCK + r"attn.\2.\3"),
        (r"encoder\.layer\.(\d+)\.attention\.attention\.relative_position_bias\.(\w+_table)", _BLOCK + r"attn.\2"),
        (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.(\w+)", _BLOCK + r"attn.proj.\2"),
        (r"encoder\.layer\.(\d+)\.intermediate\.dense\.(\w+)", _BLOCK + r"mlp.0.\2"),
        (r"encoder\.layer\.(\d+)\.output\.dense\.(\w+)", _BLOCK + r"mlp.2.\2"),
        (r"encoder\.layer\.(\d+)\.layernorm_before\.(\w+)", _BLOCK + r"norm1.\2"),
        (r"encoder\.layer\.(\d+)\.layernorm_after\.(\w+)", _BLOCK + r"norm2.\2"),
        (r"encoder\.layer\.(\d+)\.lambda_([12])", _BLOCK + r"gamma_\2"),
        (r"layernorm\.(\w+)", r"encoder.norm.\1"),
    ],
    left_out={
        r"decoder\.": "MAE's decoder, which belongs to its objective",
        r"(pooler|classifier|lm_head|decode_head|auxiliary_head|fpn\d)\.": _HEAD,
        r".*relative_position_index$": "computed here",
    },
)
AUTHORS: Final = Names(
    rules=[
        (r"cls_token", "cls_emb"),
        (r"mask_token", "mask_emb"),
        (r"pos_embed", "encoder.pos_embed"),
        (r"patch_embed\.proj\.(\w+)", r"patch_embed.conv.\1"),
        (r"(rel_pos_bias\.relative_position_bias_table)", r"encoder.\1"),
        (r"blocks\.(\d+)\.(attn\.(?:query|key|value)\.\w+|norm[12]\.\w+|attn\.proj\.\w+|gamma_[12])", _BLOCK + r"\2"),
        (r"blocks\.(\d+)\.attn\.(relative_position_bias_table)", _BLOCK + r"attn.\2"),
        (r"blocks\.(\d+)\.mlp\.fc1\.(\w+)", _BLOCK + r"mlp.0.\2"),
        (r"blocks\.(\d+)\.mlp\.fc2\.(\w+)", _BLOCK + r"mlp.2.\2"),
        (r"norm\.(\w+)", r"encoder.norm.\1"),
        (r"lm_head\.(\w+)", r"final_proj.\1"),
    ],
    left_out={
        r"decoder_(pos_embed$|embed\.|blocks\.|norm\.|pred\.)": "MAE's decoder, which belongs to its objective",
        r".*relative_position_index$": "computed here",
    },
)
_HEADS_OF_ARCHS: Final = {"base": 12, "large": 16, "huge": 16, "small": 6, "tiny": 3}


def adopt_hugging_face(path: Path, source: Any, weights: Mapping[str, Tensor]) -> Foreign:
    """Make a model of ours of Hugging Face's ``vit``, ``vit_mae`` or ``beit``.

    :param path: the folder, for messages.
    :param source: its configuration.
    :param weights: without the prefix of models with heads.
    :raises CheckpointError: the model uses something that only Hugging Face has, or the weights are not those of it.
    """
    check_fixed(path, source, hidden_act="gelu")
    is_beit = source.model_type == "beit"
    if not all(isinstance(size, int) for size in (source.image_size, source.patch_size)):
        raise CheckpointError(f"{path}: `image_size` and `patch_size` must be numbers, for images here are square.")
    relative = "none"
    if is_beit and source.use_relative_position_bias and source.use_shared_relative_position_bias:
        raise CheckpointError(f"{path}: relative positions must be shared or per layer, but this model has both.")
    if is_beit and (source.use_relative_position_bias or source.use_shared_relative_position_bias):
        relative = "per_layer" if source.use_relative_position_bias else "shared"
    scale = source.layer_scale_init_value if is_beit else 0.0
    # Files of models whose pooling averages the patches have no norm after the last block, which belongs to the pooling there.
    has_norm = not (is_beit and source.use_mean_pooling)
    config = Data2Vec1ModelConfig(
        image=ImageConfig(
            image_size=source.image_size,
            patch_size=source.patch_size,
            num_channels=source.num_channels,
            layer_scale=scale if scale > 0.0 else None,
            relative_positions=relative,  # type: ignore[arg-type]
            absolute_positions=not is_beit or source.use_absolute_position_embeddings,
            final_norm=has_norm,
        ),
        dim=source.hidden_size,
        ffn_dim=source.intermediate_size,
        depth=source.num_hidden_layers,
        num_heads=source.num_attention_heads,
        norm_eps=source.layer_norm_eps,
        dropout=source.hidden_dropout_prob,
        attention_dropout=source.attention_probs_dropout_prob,
        drop_path=source.drop_path_rate if is_beit else 0.0,
        head_layers=0,
    )

    return _adopt(path, f"Hugging Face's {source.model_type}", config, weights, HUGGING_FACE)


def adopt_authors(path: Path, args: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Foreign:
    """Make a model of ours of a file of data2vec 1.0's, BEiT's or MAE's own code, whose names are timm's.

    :param path: the file, for messages.
    :param args: the command line of the training, which the file holds.
    :param weights: without heads.
    :raises CheckpointError: the weights are no such model.
    """
    try:
        dim, channels, patch_size, _ = weights["patch_embed.proj.weight"].shape
        depth = 1 + max(int(found[1]) for key in weights if (found := re.match(r"blocks\.(\d+)\.", key)))
        ffn_dim = len(weights["blocks.0.mlp.fc1.weight"])
        table = next((tensor for key, tensor in weights.items() if key.endswith("relative_position_bias_table")), None)
        side = round((weights["pos_embed"].size(1) - 1) ** 0.5) if table is None else (round((len(table) - 3) ** 0.5) + 1) // 2
    except (KeyError, ValueError) as ex:
        raise CheckpointError(f"{path} has a `model`, but lacks {ex} of BEiT's and MAE's files.") from ex
    arch = str(args.get("model"))
    num_heads = next((heads for size, heads in _HEADS_OF_ARCHS.items() if f"_{size}" in arch), None)
    num_heads = num_heads if table is None else table.size(1)
    if num_heads is None:
        raise CheckpointError(f"{path} does not say how many heads it has: `args.model` is `{arch}`.")
    per_layer = any(re.match(r"blocks\.\d+\.attn\.relative_position_bias_table$", key) for key in weights)
    drop_path, attention_dropout = (args.get(name) for name in ("drop_path", "attn_drop_rate"))
    config = Data2Vec1ModelConfig(
        image=ImageConfig(
            image_size=side * patch_size,
            patch_size=patch_size,
            num_channels=channels,
            layer_scale=float(args.get("layer_scale_init_value") or 1e-4) if "blocks.0.gamma_1" in weights else None,
            relative_positions="none" if table is None else "per_layer" if per_layer else "shared",
            absolute_positions="pos_embed" in weights,
            final_norm="norm.weight" in weights,
        ),
        dim=dim,
        ffn_dim=ffn_dim,
        depth=depth,
        num_heads=num_heads,
        norm_eps=1e-6,
        dropout=0.0,
        attention_dropout=float(attention_dropout or 0.0),
        drop_path=float(drop_path or 0.0),
        head_layers=1 if "lm_head.weight" in weights and len(weights["lm_head.weight"]) == dim else 0,
    )
    split = {re.sub(r"\.([qv])_bias$", r".\1_bias_", key): tensor for key, tensor in weights.items()}
    split = {re.sub(r"\.q_bias_$", ".query.bias", re.sub(r"\.v_bias_$", ".value.bias", key)): t for key, t in split.items()}
    split = split_fused(split, r"\.attn\.qkv\.", [".attn.query.", ".attn.key.", ".attn.value."])

    return _adopt(path, f"the authors' `{arch}`", config, split, AUTHORS)


def _adopt(path: Path, origin: str, config: Data2Vec1ModelConfig, weights: Mapping[str, Tensor], names: Names) -> Foreign:
    transfer, problems = Transfer(origin), Mismatch()
    state = _fuse(rename(weights, names, transfer, problems), config.dim, transfer)
    remarks = {}
    positions = state.get("encoder.pos_embed")
    if positions is not None and positions.dim() == 3 and "cls_emb" in state:
        # (1, 1 + S, D) -> (1, S, D)
        state["cls_emb"], state["encoder.pos_embed"] = state["cls_emb"] + positions[:, :1], positions[:, 1:].contiguous()
        remarks["cls_emb"] = "with the position of the CLS token added"
    return complete(path, config, state, transfer, problems, may_lack=["mask_emb"], remarks=remarks)


def _fuse(state: State, dim: int, transfer: Transfer) -> State:
    """BEiT's fused projection: ``query``, ``key`` and ``value`` of a block -> ``qkv``, ``q_bias`` and ``v_bias``."""
    fused = dict(state)
    keys = [key for key in fused if key.endswith(".attn.key.bias")]
    for key in keys:
        del fused[key]
    transfer.add("left out", keys, _KEYS)
    for name in [key.removesuffix("query.weight") for key in state if key.endswith(".attn.query.weight")]:
        parts = [fused.pop(f"{name}{part}.weight", None) for part in ("query", "key", "value")]
        present = [part for part in parts if part is not None]
        fused[f"{name}qkv.weight"] = torch.cat(present)
        for ours, theirs in (("q_bias", "query.bias"), ("v_bias", "value.bias")):
            # Models without `qkv_bias` have neither.
            fused[f"{name}{ours}"] = fused.pop(f"{name}{theirs}", torch.zeros(dim))

    return fused
