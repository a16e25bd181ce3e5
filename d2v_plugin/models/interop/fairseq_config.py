"""fairseq's data2vec 2.0 configuration -> ours.

Only what the original can do and ours cannot is refused; keys that belong to training are ignored.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from d2v_plugin.data.batch import Modality
from d2v_plugin.models.config import AlibiConfig, AudioConfig, Data2VecConfig, DecoderConfig, ImageConfig, TextConfig


def convert_config(model: Mapping[str, Any], *, vocab_size: int | None = None, pad_idx: int = 1) -> Data2VecConfig:
    """
    :param model: the ``model`` section of a fairseq checkpoint's ``cfg``, with ``_name`` ``data2vec_multi``.
    :param vocab_size: number of token embeddings, for text; the configuration does not hold it.
    :raises ValueError: the model uses something that only fairseq has.
    """
    modalities = [model["supported_modality"]] if model.get("supported_modality") else [m.name for m in Modality]
    names = [getattr(name, "name", str(name)).upper() for name in modalities]
    depth = model["depth"]
    sections = {name: model["modalities"][name.lower()] for name in names}
    for name, section in sections.items():
        _refuse_unsupported(name, section)

    return Data2VecConfig(
        audio=_audio(sections["AUDIO"]) if "AUDIO" in sections else None,
        image=_image(sections["IMAGE"]) if "IMAGE" in sections else None,
        text=_text(sections["TEXT"], vocab_size, pad_idx) if "TEXT" in sections else None,
        dim=model["embed_dim"],
        depth=depth,
        num_heads=model["num_heads"],
        mlp_ratio=model["mlp_ratio"],
        norm_first=model["layer_norm_first"],
        norm_eps=model["norm_eps"],
        norm_affine=model["norm_affine"],
        input_dropout=model["dropout_input"],
        dropout=model["encoder_dropout"],
        attention_dropout=model["attention_dropout"],
        activation_dropout=model["activation_dropout"],
        post_mlp_dropout=model["post_mlp_drop"],
        layer_drop=model["layerdrop"],
        drop_path=(model["start_drop_path_rate"], model["end_drop_path_rate"]),
        shared_decoder=None if model.get("shared_decoder") is None else _decoder(model["shared_decoder"]),
        mae_init=model["mae_init"],
    )


def _audio(section: Mapping[str, Any]) -> AudioConfig:
    return AudioConfig(
        **_common(section),
        conv_layers=parse_conv_layers(section["feature_encoder_spec"]),
        conv_norm="layer_norm" if section["extractor_mode"] == "layer_norm" else "group_norm",
        position_width=section["conv_pos_width"],
        position_groups=section["conv_pos_groups"],
        position_depth=section["conv_pos_depth"],
        position_pre_norm=section["conv_pos_pre_ln"],
    )


def _image(section: Mapping[str, Any]) -> ImageConfig:
    return ImageConfig(
        **_common(section),
        image_size=section["input_size"],
        patch_size=section["patch_size"],
        num_channels=section["in_chans"],
        embed_dim=section["embed_dim"],
        fixed_positions=section["fixed_positions"],
    )


def _text(section: Mapping[str, Any], vocab_size: int | None, pad_idx: int) -> TextConfig:
    if vocab_size is None:
        raise ValueError("`vocab_size` must be given for a text model.")

    return TextConfig(
        **_common(section),
        vocab_size=vocab_size,
        pad_idx=pad_idx,
        max_positions=section["max_source_positions"],
        dropout=section["dropout"],
    )


def _common(section: Mapping[str, Any]) -> dict[str, Any]:
    alibi = None
    if section["use_alibi_encoder"]:
        alibi = AlibiConfig(
            initial_scale=section["alibi_scale"],
            learned_scale=section["learned_alibi_scale"],
            per_head=section["learned_alibi_scale_per_head"],
            per_layer=section["learned_alibi_scale_per_layer"],
            distance=section.get("alibi_distance", "manhattan"),
        )

    return {
        "prenet_depth": section["prenet_depth"],
        "prenet_layer_drop": section["prenet_layerdrop"],
        "prenet_dropout": section["prenet_dropout"],
        "prenet_drop_path": (section["start_drop_path_rate"], section["end_drop_path_rate"]),
        "num_extra_tokens": section["num_extra_tokens"],
        "init_extra_tokens_zero": section["init_extra_token_zero"],
        "local_grad_scale": section["local_grad_mult"],
        "alibi": alibi,
        "decoder": None if section.get("decoder") is None else _decoder(section["decoder"]),
    }


def _decoder(section: Mapping[str, Any]) -> DecoderConfig:
    for key in ("add_positions_masked", "add_positions_all"):
        if section.get(key):
            raise ValueError(f"`decoder.{key}` is not supported; no published model uses it.")

    return DecoderConfig(
        dim=section["decoder_dim"],
        num_groups=section["decoder_groups"],
        kernel_size=section["decoder_kernel"],
        num_layers=section["decoder_layers"],
        input_dropout=section["input_dropout"],
        residual=section["decoder_residual"],
        projection_layers=section["projection_layers"],
        projection_ratio=section["projection_ratio"],
    )


def _refuse_unsupported(name: str, section: Mapping[str, Any]) -> None:
    for key in ("learned_alibi", "transformer_decoder", "enc_dec_transformer", "no_token_positional_embeddings"):
        if section.get(key):
            raise ValueError(f"`modalities.{name.lower()}.{key}` is not supported; no published model uses it.")
    for key in ("learned_pos", "no_scale_embedding", "layernorm_embedding"):
        if not section.get(key, True):
            raise ValueError(f"`modalities.{name.lower()}.{key}: false` is not supported; no published model uses it.")


def parse_conv_layers(spec: str) -> list[tuple[int, int, int]]:
    """Read fairseq's Python expression for convolutions, such as ``[(512, 10, 5)] + [(512, 3, 2)] * 4``, without evaluating it.

    :raises ValueError: the text is anything but sums and repetitions of lists of three integers.
    """
    try:
        layers = _read_layers(ast.parse(spec, mode="eval").body)
    except (SyntaxError, TypeError, RecursionError) as ex:
        raise ValueError(f"`feature_encoder_spec` must be a sum of lists of (channels, kernel, stride), but is {spec!r}.") from ex
    if not layers or len(layers) > 100:
        raise ValueError(f"`feature_encoder_spec` must describe between 1 and 100 convolutions, but describes {len(layers)}.")

    return layers


def _read_layers(node: ast.expr) -> list[tuple[int, int, int]]:
    match node:
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _read_layers(left) + _read_layers(right)
        case ast.BinOp(left=left, op=ast.Mult(), right=ast.Constant(value=int(times))) if times <= 100:
            return _read_layers(left) * times
        case ast.List(elts=items):
            layers = [ast.literal_eval(item) for item in items]
            for layer in layers:
                channels, kernel_size, stride = layer
                if not all(isinstance(value, int) and value > 0 for value in (channels, kernel_size, stride)):
                    raise TypeError("not three positive integers")
            return layers
    raise TypeError("not a list")
