"""The values that numbers of a model's configuration may have, by their name: one table for both families.

The upper bounds are far above any model there is. They keep a slip of the keyboard from being an hour of allocating memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Final

Range = tuple[float, float]

_COUNT: Final[Range] = (0, 1000)
_SIZE: Final[Range] = (1, 1 << 16)
_IDS: Final[Range] = (0, 1 << 22)
_PROBABILITY: Final[Range] = (0.0, 1.0)
_FACTOR: Final[Range] = (0.0, 1e6)
_RATIO: Final[Range] = (1e-3, 1e3)

RANGES: Final[Mapping[str, Range]] = {
    # Widths and sizes.
    **dict.fromkeys(("dim", "ffn_dim", "embed_dim", "num_heads", "num_groups", "position_groups"), _SIZE),
    **dict.fromkeys(("image_size", "patch_size", "num_channels", "kernel_size", "position_width", "conv_layers"), _SIZE),
    "max_positions": (1, 1 << 20),
    # Numbers of layers and tokens.
    "depth": (1, 1000),
    **dict.fromkeys(("prenet_depth", "position_depth", "num_layers", "projection_layers", "head_layers"), _COUNT),
    **dict.fromkeys(("num_extra_tokens", "num_special_tokens"), (0, 1 << 16)),
    # Token ids.
    "vocab_size": (1, 1 << 22),
    **dict.fromkeys(("pad_idx", "mask_idx"), _IDS),
    # Probabilities.
    **dict.fromkeys(("input_dropout", "dropout", "attention_dropout", "activation_dropout", "post_mlp_dropout"), _PROBABILITY),
    **dict.fromkeys(("layer_drop", "drop_path", "prenet_layer_drop", "prenet_dropout", "prenet_drop_path"), _PROBABILITY),
    # Factors.
    **dict.fromkeys(("local_grad_scale", "layer_scale", "extra_tokens_std"), _FACTOR),
    **dict.fromkeys(("position_scale", "prediction_init_scale"), _FACTOR),
    **dict.fromkeys(("mlp_ratio", "projection_ratio"), _RATIO),
    "initial_scale": (-1e6, 1e6),
    "norm_eps": (1e-30, 1.0),
}
"""(least, most) of each number, and of each in a list of numbers."""


def check_ranges(config: object, path: str = "") -> Iterator[tuple[bool, str]]:
    """Check all numbers of a configuration, for :func:`d2v_plugin.core.validation.report`; yields what is wrong.

    :param config: a data class; those in it are checked, too.
    :param path: the keys that lead to it, each with its point.
    """
    for field in fields(config):  # type: ignore[arg-type]
        value, name = getattr(config, field.name), f"{path}{field.name}"
        if is_dataclass(value):
            yield from check_ranges(value, f"{name}.")
        for number in _numbers_of(value):
            least, most = RANGES[field.name]
            if not least <= number <= most:
                yield True, f"`{name}` must be between {_show(least)} and {_show(most)}, but is {_show(number)}."


def _numbers_of(value: Any) -> Iterator[float]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _numbers_of(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def _show(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) and abs(number) < 10**15 else f"{float(number):g}"


def check_parameters(count: float, what: str, settings: str) -> Iterator[tuple[bool, str]]:
    """Check that a part of a model has fewer than 100 billion parameters, before anything takes memory for them.

    :param count: about how many it has.
    :param settings: that make it so large.
    """
    yield count >= 1e11, f"{settings} give {what} {count:.0e} parameters; there must be fewer than 1e+11."
