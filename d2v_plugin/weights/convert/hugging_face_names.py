"""Names of parameters and settings of data2vec 1.0: ours -> Hugging Face's."""

from __future__ import annotations

import re
from typing import Final

from d2v_plugin.models.data2vec1.config import Data2Vec1ModelConfig

# Parameters: patterns, applied one after the other.
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


# Settings that mean the same: of the model, and of its only modality.
_MODEL = {
    "dim": "hidden_size",
    "ffn_dim": "intermediate_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "norm_eps": "layer_norm_eps",
}
_TOKEN_MODEL = _MODEL | {"dropout": "hidden_dropout_prob", "attention_dropout": "attention_probs_dropout_prob"}
_SPEECH_MODEL = _MODEL | {
    "dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "layer_drop": "layerdrop",
}
SETTINGS: Final = {
    "data2vec-audio": (
        _SPEECH_MODEL,
        {
            "position_groups": "num_conv_pos_embedding_groups",
            "position_depth": "num_conv_pos_embeddings",
            "input_dropout": "feat_proj_dropout",
        },
    ),
    "data2vec-text": (_TOKEN_MODEL, {"vocab_size": "vocab_size", "pad_idx": "pad_token_id"}),
    "data2vec-vision": (
        _TOKEN_MODEL | {"drop_path": "drop_path_rate"},
        {"image_size": "image_size", "patch_size": "patch_size", "num_channels": "num_channels"},
    ),
}


def rename(config: Data2Vec1ModelConfig, name: str) -> str:
    """Our name of a parameter -> Hugging Face's, without the prefix that it has in a model with a head."""
    names = AUDIO_NAMES if config.audio is not None else TEXT_NAMES if config.text is not None else VISION_NAMES
    for pattern, replacement in names.items():
        name = re.sub(pattern, replacement, name)

    return name
