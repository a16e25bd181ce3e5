"""wav2vec 2.0 and HuBERT of Hugging Face, fairseq and fairseq2 -> data2vec 1.0's encoder, which computes the same.

Both are the convolutions, the position convolution and the Transformer of :mod:`d2v_plugin.models.data2vec1.audio`, with other
settings: one position convolution without norm, whose weight norm is fused here, group norm or biases in the first convolutions,
pre-norm blocks in the large models. What predicts in their pre-training (quantizer, code books, projections) has no place here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from d2v_plugin.models.data2vec1.config import AudioConfig, Data2Vec1ModelConfig
from d2v_plugin.weights.convert.transfer import Foreign, Names, Transfer, check_fixed, complete, fuse_weight_norm, rename
from d2v_plugin.weights.state import Mismatch

_OBJECTIVE: Final = "belongs to the original's objective"
_HEAD: Final = "a head on top of the encoder"
_BLOCK: Final = r"encoder.layers.\1."

HUGGING_FACE: Final = Names(
    rules=[
        (r"feature_extractor\.conv_layers\.(\d+)\.conv\.(\w+)", r"feature_extractor.conv_layers.\1.0.\2"),
        (r"feature_extractor\.conv_layers\.0\.layer_norm\.(\w+)@group", r"feature_extractor.conv_layers.0.2.\1"),
        (r"feature_extractor\.conv_layers\.(\d+)\.layer_norm\.(\w+)", r"feature_extractor.conv_layers.\1.2.1.\2"),
        (r"feature_projection\.layer_norm\.(\w+)", r"layer_norm.\1"),
        (r"feature_projection\.projection\.(\w+)", r"post_extract_proj.\1"),
        (r"masked_spec_embed", "mask_emb"),
        (r"encoder\.pos_conv_embed\.conv\.(\w+)", r"encoder.pos_conv.0.0.\1"),
        (r"encoder\.layer_norm\.(\w+)", r"encoder.layer_norm.\1"),
        (r"encoder\.layers\.(\d+)\.attention\.([kvq]|out)_proj\.(\w+)", _BLOCK + r"self_attn.\2_proj.\3"),
        (r"encoder\.layers\.(\d+)\.layer_norm\.(\w+)", _BLOCK + r"self_attn_layer_norm.\2"),
        (r"encoder\.layers\.(\d+)\.feed_forward\.intermediate_dense\.(\w+)", _BLOCK + r"fc1.\2"),
        (r"encoder\.layers\.(\d+)\.feed_forward\.output_dense\.(\w+)", _BLOCK + r"fc2.\2"),
        (r"encoder\.layers\.(\d+)\.final_layer_norm\.(\w+)", _BLOCK + r"final_layer_norm.\2"),
    ],
    left_out={
        r"(quantizer|project_q|project_hid)\.": _OBJECTIVE,
        r"(lm_head|projector|classifier|objective|tdnn|feature_extractor_proj)\.|layer_weights$": _HEAD,
    },
)
FAIRSEQ: Final = Names(
    rules=[
        (r"(feature_extractor\.conv_layers\.\d+\.(0|2|2\.1)\.\w+)", r"\1"),
        (r"((layer_norm|post_extract_proj)\.\w+|mask_emb)", r"\1"),
        (r"encoder\.pos_conv\.0\.(\w+)", r"encoder.pos_conv.0.0.\1"),
        (r"(encoder\.pos_conv\.\d+\.0\.\w+)", r"\1"),
        (r"(encoder\.layer_norm\.\w+)", r"\1"),
        (r"(encoder\.layers\.\d+\.(self_attn\.([kvq]|out)_proj|self_attn_layer_norm|fc1|fc2|final_layer_norm)\.\w+)", r"\1"),
    ],
    left_out={
        r"(quantizer|input_quantizer|project_q|project_inp|target_glu|final_proj)\.|label_embs_concat$": _OBJECTIVE,
    },
)
FAIRSEQ2: Final = Names(
    rules=[
        (r"encoder_frontend\.feature_extractor\.layers\.(\d+)\.conv\.(\w+)", r"feature_extractor.conv_layers.\1.0.\2"),
        (r"encoder_frontend\.feature_extractor\.layers\.0\.group_norm\.(\w+)", r"feature_extractor.conv_layers.0.2.\1"),
        (r"encoder_frontend\.feature_extractor\.layers\.(\d+)\.layer_norm\.(\w+)", r"feature_extractor.conv_layers.\1.2.1.\2"),
        (r"encoder_frontend\.post_extract_layer_norm\.(\w+)", r"layer_norm.\1"),
        (r"encoder_frontend\.model_dim_proj\.(\w+)", r"post_extract_proj.\1"),
        (r"encoder_frontend\.pos_encoder\.conv\.(\w+)", r"encoder.pos_conv.0.0.\1"),
        (r"encoder_frontend\.pos_encoder\.layers\.(\d+)\.conv\.(\w+)", r"encoder.pos_conv.\1.0.\2"),
        (r"(encoder_frontend|encoder)\.layer_norm\.(\w+)", r"encoder.layer_norm.\2"),
        (r"masker\.temporal_mask_embed", "mask_emb"),
        (r"encoder\.layers\.(\d+)\.self_attn\.([kvq])_proj\.(\w+)", _BLOCK + r"self_attn.\2_proj.\3"),
        (r"encoder\.layers\.(\d+)\.self_attn\.output_proj\.(\w+)", _BLOCK + r"self_attn.out_proj.\2"),
        (r"encoder\.layers\.(\d+)\.self_attn_layer_norm\.(\w+)", _BLOCK + r"self_attn_layer_norm.\2"),
        (r"encoder\.layers\.(\d+)\.ffn\.inner_proj\.(\w+)", _BLOCK + r"fc1.\2"),
        (r"encoder\.layers\.(\d+)\.ffn\.output_proj\.(\w+)", _BLOCK + r"fc2.\2"),
        (r"encoder\.layers\.(\d+)\.ffn_layer_norm\.(\w+)", _BLOCK + r"final_layer_norm.\2"),
    ],
    left_out={
        r"(quantizer|final_target_proj)\.": _OBJECTIVE,
        r"final_proj\.": "a head on top of the encoder, or its objective's",
    },
)


def adopt_speech(
    path: Path, origin: str, config: Data2Vec1ModelConfig, weights: Mapping[str, Tensor], names: Names, head: str = ""
) -> Foreign:
    """Make a model of ours.

    :param path: for messages.
    :param origin: what it is, such as "fairseq's HuBERT".
    :param config: of the encoder that computes the same.
    :param names: those of the format.
    :param head: a remark on what was already taken off, for the table.
    :raises CheckpointError: the weights are not those of the configuration.
    """
    transfer, problems = Transfer(origin), Mismatch()
    weights, fused = fuse_weight_norm(weights)
    state = rename(weights, names, transfer, problems)
    remarks = {"encoder.pos_conv": "weight norm fused"} if fused else {}
    if "post_extract_proj.weight" not in state and "layer_norm.weight" in state and len(state["layer_norm.weight"]) == config.dim:
        # The original projects only to another width.
        state |= {"post_extract_proj.weight": torch.eye(config.dim), "post_extract_proj.bias": torch.zeros(config.dim)}
        remarks["post_extract_proj"] = "the identity, which the original leaves out"
    return complete(path, config, state, transfer, problems, may_lack=["mask_emb"], remarks=remarks)


def adopt_hugging_face(path: Path, source: Any, weights: Mapping[str, Tensor]) -> Foreign:
    """Make a model of ours of Hugging Face's ``wav2vec2`` or ``hubert``.

    :param path: the folder, for messages.
    :param source: its configuration.
    :param weights: without the prefix of models with heads.
    :raises CheckpointError: the model uses something that only Hugging Face has, or the weights are not those of it.
    """
    check_fixed(
        path,
        source,
        hidden_act="gelu",
        feat_extract_activation="gelu",
        add_adapter=False,
        conv_pos_batch_norm=False,
        feat_proj_layer_norm=True,
        adapter_attn_dim=None,
    )
    has_groups = source.feat_extract_norm == "group"
    config = Data2Vec1ModelConfig(
        audio=AudioConfig(
            conv_layers=list(zip(source.conv_dim, source.conv_kernel, source.conv_stride, strict=True)),
            conv_norm="group_norm" if has_groups else "layer_norm",
            conv_bias=source.conv_bias,
            position_width=source.num_conv_pos_embeddings,
            position_groups=source.num_conv_pos_embedding_groups,
            position_depth=1,
            position_norm=False,
            input_dropout=source.feat_proj_dropout,
        ),
        dim=source.hidden_size,
        ffn_dim=source.intermediate_size,
        depth=source.num_hidden_layers,
        num_heads=source.num_attention_heads,
        norm_first=source.do_stable_layer_norm,
        norm_eps=source.layer_norm_eps,
        dropout=source.hidden_dropout,
        attention_dropout=source.attention_dropout,
        activation_dropout=source.activation_dropout,
        layer_drop=source.layerdrop,
        head_layers=0,
    )
    if has_groups:
        norm = "feature_extractor.conv_layers.0.layer_norm."
        weights = {f"{key}@group" if key.startswith(norm) else key: tensor for key, tensor in weights.items()}

    return adopt_speech(path, f"Hugging Face's {source.model_type}", config, weights, HUGGING_FACE)
