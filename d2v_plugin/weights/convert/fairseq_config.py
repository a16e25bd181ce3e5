"""fairseq's data2vec 2.0 configuration -> ours.

Only what the original can do and ours cannot is refused, and what nobody here knows; see :mod:`fairseq_keys`.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any, Final

from d2v_plugin.core.batch import Modality
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.models.data2vec2.frontend_config import (
    AlibiConfig,
    AudioFrontendConfig,
    DecoderConfig,
    ImageFrontendConfig,
    SpectrogramFrontendConfig,
    TextFrontendConfig,
)
from d2v_plugin.weights.convert.fairseq_keys import EMA_KEYS, LOSS_KEYS, MASK_KEYS, TARGET_KEYS, check_keys

Fields = dict[str, tuple[str, Any]]
"""Keys of fairseq: our names, and fairseq's own defaults. Released files were written by earlier versions of its code, whose
configurations lack some keys."""

_MODEL: Final[Fields] = {
    "embed_dim": ("dim", 768),
    "depth": ("depth", 8),
    "num_heads": ("num_heads", 12),
    "mlp_ratio": ("mlp_ratio", 4.0),
    "layer_norm_first": ("norm_first", False),
    "norm_eps": ("norm_eps", 1e-6),
    "norm_affine": ("norm_affine", True),
    "dropout_input": ("input_dropout", 0.0),
    "encoder_dropout": ("dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.1),
    "activation_dropout": ("activation_dropout", 0.0),
    "post_mlp_drop": ("post_mlp_dropout", 0.1),
    "layerdrop": ("layer_drop", 0.0),
    "mae_init": ("mae_init", False),
}
_MODALITY: Final[Fields] = {
    "prenet_depth": ("prenet_depth", 4),
    "prenet_layerdrop": ("prenet_layer_drop", 0.0),
    "prenet_dropout": ("prenet_dropout", 0.0),
    "num_extra_tokens": ("num_extra_tokens", 0),
    "init_extra_token_zero": ("init_extra_tokens_zero", True),
    "local_grad_mult": ("local_grad_scale", 1.0),
}
_ALIBI: Final[Fields] = {
    "alibi_scale": ("initial_scale", 1.0),
    "learned_alibi_scale": ("learned_scale", False),
    "learned_alibi_scale_per_head": ("per_head", False),
    "learned_alibi_scale_per_layer": ("per_layer", False),
}
_MODALITIES: Final[dict[str, Fields]] = {
    "AUDIO": {
        "conv_pos_width": ("position_width", 95),
        "conv_pos_groups": ("position_groups", 16),
        "conv_pos_depth": ("position_depth", 5),
        "conv_pos_pre_ln": ("position_pre_norm", False),
    },
    "IMAGE": {
        "input_size": ("image_size", 224),
        "patch_size": ("patch_size", 16),
        "in_chans": ("num_channels", 3),
        "embed_dim": ("embed_dim", 768),
        "fixed_positions": ("fixed_positions", True),
    },
    "TEXT": {"max_source_positions": ("max_positions", 512), "dropout": ("dropout", 0.1)},
}
_SPECTROGRAM: Final[Fields] = {"patch_size": ("patch_size", 16), "target_length": ("pad_frames", 1024)}
_DECODER: Final[Fields] = {
    "decoder_dim": ("dim", 384),
    "decoder_groups": ("num_groups", 16),
    "decoder_kernel": ("kernel_size", 5),
    "decoder_layers": ("num_layers", 5),
    "input_dropout": ("input_dropout", 0.1),
    "decoder_residual": ("residual", True),
    "projection_layers": ("projection_layers", 1),
    "projection_ratio": ("projection_ratio", 2.0),
}
_DROP_PATH: Final = ("start_drop_path_rate", "end_drop_path_rate")

_CONVERTED: Final[dict[str, set[str]]] = {
    "model": {
        *_MODEL,
        *_DROP_PATH,
        *TARGET_KEYS,
        *LOSS_KEYS,
        *EMA_KEYS,
        "clone_batch",
        "ema_encoder_only",
        "modalities",
        "shared_decoder",
        "supported_modality",
    },
    "modality": {
        *_MODALITY,
        *_DROP_PATH,
        *_ALIBI,
        *MASK_KEYS,
        "use_alibi_encoder",
        "num_alibi_heads",
        "decoder",
        "ema_local_encoder",
    },
    "audio": {*_MODALITIES["AUDIO"], "feature_encoder_spec", "extractor_mode"},
    "image": {*_MODALITIES["IMAGE"], "alibi_dims", "alibi_distance", "target_length", "max_length"},
    "text": {*_MODALITIES["TEXT"]},
}
"""By section: the keys that are converted, or recorded by :func:`fairseq_info.describe_pretraining`."""

_CONV_LAYERS: Final = "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]"

_MAX_CONV_LAYERS: Final = 100


def convert_config(
    model: Mapping[str, Any], *, vocab_size: int | None = None, pad_idx: int = 1, modalities: Sequence[str] | None = None
) -> Data2VecConfig:
    """Make our configuration of one of data2vec 2.0.

    :param model: the ``model`` section of a fairseq checkpoint's ``cfg``, with ``_name`` ``data2vec_multi``.
    :param vocab_size: number of token embeddings, for text; the configuration does not hold it.
    :param modalities: which frontends there are if the configuration does not say; None = all.
    :raises ValueError: the model uses something that only fairseq has.
    """
    names = modality_names(model) or modalities or [m.name for m in Modality]
    sections = {name: dict(model.get("modalities", {}).get(name.lower(), {})) for name in names}
    check_keys(model, "model", _CONVERTED["model"])
    check_keys(model.get("modalities", {}), (), [m.value for m in Modality], place="modalities.")
    for name, section in sections.items():
        kind = name.lower()
        # EAT's frontend is that of images.
        keys = "image" if _is_spectrogram(section) else kind
        check_keys(section, ("modality", keys), _CONVERTED["modality"] | _CONVERTED[keys], place=f"modalities.{kind}.")
        section["num_alibi_heads"] = _biased_heads(model, section, kind)
    decoder = model.get("shared_decoder")

    return Data2VecConfig(
        audio=_audio(sections["AUDIO"]) if "AUDIO" in sections and not _is_spectrogram(sections["AUDIO"]) else None,
        spectrogram=_spectrogram(sections["AUDIO"]) if _is_spectrogram(sections.get("AUDIO", {})) else None,
        image=_image(sections["IMAGE"]) if "IMAGE" in sections else None,
        text=_text(sections["TEXT"], vocab_size, pad_idx) if "TEXT" in sections else None,
        **_take(model, _MODEL),
        drop_path=_drop_path(model),
        shared_decoder=None if decoder is None else _decoder(decoder, "shared_decoder."),
    )


def _take(section: Mapping[str, Any], fields: Fields) -> dict[str, Any]:
    return {ours: section.get(theirs, default) for theirs, (ours, default) in fields.items()}


def _drop_path(section: Mapping[str, Any]) -> tuple[float, float]:
    return section.get("start_drop_path_rate", 0.0), section.get("end_drop_path_rate", 0.0)


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
        **_frontend(section, "AUDIO"),
        conv_layers=parse_conv_layers(section.get("feature_encoder_spec", _CONV_LAYERS)),
        conv_norm="layer_norm" if section.get("extractor_mode", "layer_norm") == "layer_norm" else "group_norm",
    )


def _is_spectrogram(section: Mapping[str, Any]) -> bool:
    return "in_chans" in section and "max_length" in section


def _spectrogram(section: Mapping[str, Any]) -> SpectrogramFrontendConfig:
    if not section.get("fixed_positions", True):
        raise ValueError("`modalities.image.fixed_positions` must be True.")
    settings = _frontend(section, "IMAGE")
    for name, _ in _MODALITIES["IMAGE"].values():
        del settings[name]
    settings |= _take(section, _SPECTROGRAM)
    return SpectrogramFrontendConfig(**settings, max_frames=section["max_length"] * settings["patch_size"])


def _image(section: Mapping[str, Any]) -> ImageFrontendConfig:
    return ImageFrontendConfig(**_frontend(section, "IMAGE"))


def _text(section: Mapping[str, Any], vocab_size: int | None, pad_idx: int) -> TextFrontendConfig:
    if vocab_size is None:
        raise ValueError("`vocab_size` must be given for a text model.")
    return TextFrontendConfig(**_frontend(section, "TEXT"), vocab_size=vocab_size, pad_idx=pad_idx)


def _frontend(section: Mapping[str, Any], modality: str) -> dict[str, Any]:
    decoder, place = section.get("decoder", {}), f"modalities.{modality.lower()}.decoder."
    if decoder and modality == "IMAGE":
        # Read by decoders of sequences alone; those of images always have one layer.
        decoder = dict(decoder) | {"projection_layers": 1}
    return {
        **_take(section, _MODALITY | _MODALITIES[modality]),
        "prenet_drop_path": _drop_path(section),
        "alibi": _alibi(section) if section.get("use_alibi_encoder", False) else None,
        "decoder": None if decoder is None else _decoder(decoder, place),
    }


def _alibi(section: Mapping[str, Any]) -> AlibiConfig:
    distance, num_dims = section.get("alibi_distance", "manhattan"), section.get("alibi_dims", 2)
    if num_dims not in (1, 2):
        raise ValueError(f"`modalities.image.alibi_dims` must be 1 or 2, but is {num_dims!r}.")

    return AlibiConfig(
        **_take(section, _ALIBI),
        distance="sequential" if num_dims == 1 else distance,
        num_heads=section["num_alibi_heads"],
    )


def _biased_heads(model: Mapping[str, Any], section: Mapping[str, Any], kind: str) -> int | None:
    """How many heads have a bias; None = all, which is fairseq's default."""
    num_heads = model.get("num_heads", _MODEL["num_heads"][1])
    number = section.get("num_alibi_heads", num_heads)
    if section.get("use_alibi_encoder", False) and not (isinstance(number, int) and 1 <= number <= num_heads):
        raise ValueError(f"`modalities.{kind}.num_alibi_heads` must be from 1 to `num_heads` ({num_heads}), but is {number!r}.")

    return None if number == num_heads else number


def _decoder(section: Mapping[str, Any], place: str) -> DecoderConfig:
    check_keys(section, "decoder", _DECODER, place=place)
    config = DecoderConfig(**_take(section, _DECODER))
    # fairseq's list of layers has the last one always.
    config.projection_layers = max(1, config.projection_layers)

    return config


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
