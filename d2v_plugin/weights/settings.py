"""Settings of a checkpoint's model and of a new one that must agree, because the weights depend on them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final

from fairseq2.utils.structured import StandardValueConverter

from d2v_plugin.models.families import AnyConfig

# What a new run may set differently than the checkpoint's: none of it changes what evaluation computes from given weights,
# except for the treatment of padding, the resolution, and the final norm of vision models, which are meant to be chosen.
_FREE_SETTINGS: Final = {
    "activation_dropout",
    "attention_dropout",
    "drop_path",
    "dropout",
    "final_norm",
    "head_layers",
    "image_size",
    "in_kernel",
    "init_extra_tokens_zero",
    "initial_scale",
    "input_dropout",
    "layer_drop",
    "learned_scale",
    "local_grad_scale",
    "mae_init",
    "original_padding",
    "post_mlp_dropout",
    "prediction_init_scale",
    "prenet_drop_path",
    "prenet_dropout",
    "prenet_layer_drop",
}


def find_differing_settings(checkpoint: AnyConfig, model: AnyConfig, free: Collection[str] = ()) -> Iterator[str]:
    """Settings that both have and the weights depend on, although shapes may not show it.

    :param free: names of settings that may differ, too.
    """
    if type(checkpoint) is type(model):  # otherwise the weights differ in any case
        converter = StandardValueConverter()
        yield from _compare(converter.unstructure(checkpoint), converter.unstructure(model), "", _FREE_SETTINGS.union(free))


def _compare(checkpoint: Any, model: Any, name: str, free: Collection[str]) -> Iterator[str]:
    if isinstance(checkpoint, dict) and isinstance(model, dict):
        for key in checkpoint:
            if key not in free:
                yield from _compare(checkpoint[key], model[key], f"{name}.{key}" if name else key, free)
    elif not isinstance(checkpoint, dict) and not isinstance(model, dict) and checkpoint != model:
        yield f"`{name}` is {checkpoint} in the checkpoint, but {model} in the model"
