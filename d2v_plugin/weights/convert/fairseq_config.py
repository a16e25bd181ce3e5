"""fairseq's data2vec 2.0 configuration -> ours.

Only what the original can do and ours cannot is refused; keys that belong to training are ignored.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any, Final

from d2v_plugin.core.batch import Modality
from d2v_plugin.models.data2vec2.config import (
    AlibiConfig,
    AudioFrontendConfig,
    Data2VecConfig,
    DecoderConfig,
    ImageFrontendConfig,
    TextFrontendConfig,
)

# fairseq's own defaults. Released files were written by earlier versions of its code, whose configurations lack some keys.
_MODEL: Final[dict[str, Any]] = {
    "depth": 8,
    "num_heads": 12,
    "embed_dim": 768,
    "mlp_ratio": 4.0,
    "layer_norm_first": False,
    "norm_eps": 1e-6,
    "norm_affine": True,
    "dropout_input": 0.0,
    "encoder_dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.0,
    "post_mlp_drop": 0.1,
    "layerdrop": 0.0,
    "start_drop_path_rate": 0.0,
    "end_drop_path_rate": 0.0,
    "mae_init": False,
}
_MODALITY: Final[dict[str, Any]] = {
    "prenet_depth": 4,
    "prenet_layerdrop": 0.0,
    "prenet_dropout": 0.0,
    "start_drop_path_rate": 0.0,
    "end_drop_path_rate": 0.0,
    "num_extra_tokens": 0,
    "init_extra_token_zero": True,
    "local_grad_mult": 1.0,
    "use_alibi_encoder": False,
    "alibi_scale": 1.0,
    "learned_alibi_scale": False,
    "learned_alibi_scale_per_head": False,
    "learned_alibi_scale_per_layer": False,
}
_MODALITIES: Final[dict[str, dict[str, Any]]] = {
    "AUDIO": {
        "extractor_mode": "layer_norm",
        "feature_encoder_spec": "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]",
        "conv_pos_width": 95,
        "conv_pos_groups": 16,
        "conv_pos_depth": 5,
        "conv_pos_pre_ln": False,
    },
    "IMAGE": {"input_size": 224, "in_chans": 3, "patch_size": 16, "embed_dim": 768, "fixed_positions": True},
    "TEXT": {"max_source_positions": 512, "dropout": 0.1},
}
_DECODER: Final[dict[str, Any]] = {
    "decoder_dim": 384,
    "decoder_groups": 16,
    "decoder_kernel": 5,
    "decoder_layers": 5,
    "input_dropout": 0.1,
    "decoder_residual": True,
    "projection_layers": 1,
    "projection_ratio": 2.0,
}

_MAX_CONV_LAYERS: Final = 100


def convert_config(
    model: Mapping[str, Any], *, vocab_size: int | None = None, pad_idx: int = 1, modalities: Sequence[str] | None = None
) -> Data2VecConfig:
    """
    :param model: the ``model`` section of a fairseq checkpoint's ``cfg``, with ``_name`` ``data2vec_multi``.
    :param vocab_size: number of token embeddings, for text; the configuration does not hold it.
    :param modalities: which frontends there are if the configuration does not say; None = all.
    :raises ValueError: the model uses something that only fairseq has.
    """
    names = modality_names(model) or modalities or [m.name for m in Modality]
    sections = {name: _MODALITY | _MODALITIES[name] | dict(model.get("modalities", {}).get(name.lower(), {})) for name in names}
    for name, section in sections.items():
        _refuse_unsupported(name, section)
    model = _MODEL | dict(model)

    return Data2VecConfig(
        audio=_audio(sections["AUDIO"]) if "AUDIO" in sections else None,
        image=_image(sections["IMAGE"]) if "IMAGE" in sections else None,
        text=_text(sections["TEXT"], vocab_size, pad_idx) if "TEXT" in sections else None,
        dim=model["embed_dim"],
        depth=model["depth"],
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


def modality_names(model: Mapping[str, Any]) -> list[str]:
    """The upper-case names of the frontends that the configuration names; none if it leaves that to the training task.

    :raises ValueError: there is no such modality.
    """
    modality = model.get("supported_modality")
    if not modality:
        return []
    name = str(modality).rpartition(".")[2].upper()
    if name not in _MODALITIES:
        raise ValueError(f"`supported_modality` must be AUDIO, IMAGE or TEXT, but is {modality!r}.")

    return [name]


def _audio(section: Mapping[str, Any]) -> AudioFrontendConfig:
    return AudioFrontendConfig(
        **_common(section),
        conv_layers=parse_conv_layers(section["feature_encoder_spec"]),
        conv_norm="layer_norm" if section["extractor_mode"] == "layer_norm" else "group_norm",
        position_width=section["conv_pos_width"],
        position_groups=section["conv_pos_groups"],
        position_depth=section["conv_pos_depth"],
        position_pre_norm=section["conv_pos_pre_ln"],
    )


def _image(section: Mapping[str, Any]) -> ImageFrontendConfig:
    return ImageFrontendConfig(
        **_common(section),
        image_size=section["input_size"],
        patch_size=section["patch_size"],
        num_channels=section["in_chans"],
        embed_dim=section["embed_dim"],
        fixed_positions=section["fixed_positions"],
    )


def _text(section: Mapping[str, Any], vocab_size: int | None, pad_idx: int) -> TextFrontendConfig:
    if vocab_size is None:
        raise ValueError("`vocab_size` must be given for a text model.")

    return TextFrontendConfig(
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
        "decoder": None if section.get("decoder", {}) is None else _decoder(section.get("decoder", {})),
    }


def _decoder(section: Mapping[str, Any]) -> DecoderConfig:
    section = _DECODER | dict(section)
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
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError) as ex:
        raise ValueError(
            f"`feature_encoder_spec` must be a sum of lists of (channels, kernel, stride), but is {spec!s:.100}."
        ) from ex
    if not 1 <= len(layers) <= _MAX_CONV_LAYERS:
        raise ValueError(
            f"`feature_encoder_spec` must describe between 1 and {_MAX_CONV_LAYERS} convolutions, but describes {len(layers)}."
        )

    return layers


def _read_layers(node: ast.expr) -> list[tuple[int, int, int]]:
    match node:
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _read_layers(left) + _read_layers(right)
        case ast.BinOp(left=left, op=ast.Mult(), right=ast.Constant(value=int(times))):
            layers = _read_layers(left)
            if len(layers) * times > _MAX_CONV_LAYERS:
                raise TypeError("too many")
            return layers * times
        case ast.List(elts=items):
            layers = [ast.literal_eval(item) for item in items]
            for layer in layers:
                channels, kernel_size, stride = layer
                if not all(isinstance(value, int) and value > 0 for value in (channels, kernel_size, stride)):
                    raise TypeError("not three positive integers")
            return layers
    raise TypeError("not a list")
