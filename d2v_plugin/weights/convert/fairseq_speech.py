"""fairseq's wav2vec 2.0 and HuBERT -> data2vec 1.0's encoder, which computes the same; see :mod:`speech`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.models.data2vec1.config import AudioConfig, Data2Vec1ModelConfig
from d2v_plugin.weights.convert.fairseq_config import parse_conv_layers
from d2v_plugin.weights.convert.speech import FAIRSEQ, adopt_speech
from d2v_plugin.weights.convert.transfer import Foreign, check_fixed

_ORIGINS: Final = {"wav2vec2": "fairseq's wav2vec 2.0", "hubert": "fairseq's HuBERT"}
_CONV_LAYERS: Final = "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2"


def adopt(path: Path, settings: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Foreign:
    """Make a model of ours.

    :param path: the file, for messages.
    :param settings: ``cfg.model`` or flat ``args`` of the pre-trained model; what is missing has fairseq's default.
    :param weights: without heads.
    :raises CheckpointError: the model uses something that only fairseq has, or the weights are not those of it.
    """
    get = settings.get
    check_fixed(path, settings, activation_fn="gelu", layer_type="transformer", quantize_input=False, conv_pos_batch_norm=False)
    depth = get("pos_conv_depth", 1)
    try:
        conv_layers = parse_conv_layers(get("conv_feature_layers", _CONV_LAYERS))
    except ValueError as ex:
        raise CheckpointError(f"{path}: the configuration cannot be converted: {ex}") from ex
    config = Data2Vec1ModelConfig(
        audio=AudioConfig(
            conv_layers=conv_layers,
            conv_norm="layer_norm" if get("extractor_mode") == "layer_norm" else "group_norm",
            conv_bias=get("conv_bias", False),
            position_width=get("conv_pos", 128),
            position_groups=get("conv_pos_groups", 16),
            position_depth=depth,
            position_norm=depth > 1,
            local_grad_scale=get("feature_grad_mult", 1.0),
            input_dropout=get("dropout_input", 0.0),
        ),
        dim=get("encoder_embed_dim", 768),
        ffn_dim=get("encoder_ffn_embed_dim", 3072),
        depth=get("encoder_layers", 12),
        num_heads=get("encoder_attention_heads", 12),
        norm_first=get("layer_norm_first", False),
        dropout=get("dropout", 0.1),
        attention_dropout=get("attention_dropout", 0.1),
        activation_dropout=get("activation_dropout", 0.0),
        layer_drop=get("encoder_layerdrop", 0.0),
        head_layers=0,
    )

    return adopt_speech(path, _ORIGINS[settings["_name"]], config, weights, FAIRSEQ)
