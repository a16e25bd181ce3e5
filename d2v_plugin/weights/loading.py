"""Models for use, and weights for new runs, from any checkpoint of this package."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from fairseq2.logging import log
from fairseq2.utils.structured import StandardValueConverter
from torch import Tensor

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.models.base import EncoderModel, drop_criterion
from d2v_plugin.models.families import AnyConfig, AnyModel
from d2v_plugin.weights.positions import resize_positions
from d2v_plugin.weights.sources import Weights, find_source
from d2v_plugin.weights.state import State, build_skeleton, compare, fill_skeleton

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

# What predicts; in data2vec 1.0 that is a head, and for images the final norm, which fine-tuning on the mean has not.
_DECODERS: Final = r"(modality_encoders\.\w+\.decoder|shared_decoder|final_proj|encoder\.regression_head|encoder\.norm)\."


def load(
    path_or_name: str | Path,
    *,
    weights: Weights = "student",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> AnyModel:
    """Load a model for use: in evaluation mode, without gradients and without criterion.

    :param path_or_name: a directory written by ``tools/convert_checkpoint.py``; the output directory of a run, its
        ``checkpoints`` (both mean the last complete checkpoint) or one of its ``step_N``; or the name of a registered model.
    :param weights: ``teacher`` takes the averaged weights for all modules that the teacher has, the student's for the others.
    :param device: None = the CPU.
    :param dtype: None = fp32.
    :raises CheckpointError: there is no such checkpoint, it cannot be read, or its weights are not those of its
        configuration; the message lists all keys.
    """
    _check_weights(weights)
    source = find_source(path_or_name)
    state = source.read(weights)
    model = build_skeleton(source.config, num_tensors=len(state), path=source.path)
    compare(model.state_dict(), state).raise_if_any(f"{source.path} does not hold the weights of its own configuration:")

    return fill_skeleton(model, state, device=device or "cpu", dtype=dtype or torch.float32)


def load_weights(model: EncoderModel, path_or_name: str | Path, *, weights: Weights = "student") -> None:
    """Start a new training run from a checkpoint (continued pre-training): copy its weights into ``model``.

    Call it before the criterion is built, so that the teacher starts from the same weights. Dropout and the like stay as
    the model has them. A decoder that only one side has stays as initialised, or is left out; position tables of images are
    interpolated to the resolution of the model. The log says both.

    :param model: newly initialised, on any device. On the meta device nothing happens: there fairseq2 itself fills the
        model, from rank 0 or from the run's own checkpoint.
    :param path_or_name: as for :func:`load`.
    :param weights: as for :func:`load`.
    :raises CheckpointError: as for :func:`load`, or the checkpoint holds another model; nothing has been copied then.
    """
    _check_weights(weights)
    if not isinstance(model, AnyModel):
        raise CheckpointError(f"{path_or_name} cannot be loaded into a {type(model).__name__}.")
    own = drop_criterion(model.state_dict())
    if any(tensor.is_meta for tensor in own.values()):
        return

    source = find_source(path_or_name)
    theirs, ours = (" and ".join(part.value for part in config.frontends) for config in (source.config, model.config))
    if not source.config.frontends.keys() & model.config.frontends.keys():
        raise CheckpointError(f"{source.path} is a model of {theirs}; a model of {ours} cannot start from it.")
    state = source.read(weights)
    _match_decoders(own, state)
    resize_positions(state, own)
    mismatch = compare(own, state)
    mismatch.settings = list(_differing_settings(source.config, model.config))
    mismatch.raise_if_any(f"{source.path} does not hold the weights of this model:")

    with torch.no_grad():
        for key, tensor in state.items():
            own[key].copy_(tensor)
    log.info("Loaded {} tensors ({} weights) from {}.", len(state), weights, source.path)


def _check_weights(weights: str) -> None:
    if weights not in ("student", "teacher"):
        raise ValueError(f"`weights` must be 'student' or 'teacher', but is {weights!r}.")


def _match_decoders(own: State, state: State) -> None:
    """Drop the decoders that only one side has from the other."""
    for these, others, what in ((own, state, "is not in the checkpoint and stays as initialised"), (state, own, "is left out")):
        for prefix in sorted(_decoder_prefixes(these) - _decoder_prefixes(others)):
            for key in [key for key in these if key.startswith(prefix)]:
                del these[key]
            log.info("The decoder `{}` {}.", prefix.rstrip("."), what)


def _decoder_prefixes(state: Mapping[str, Tensor]) -> set[str]:
    return {found[0] for key in state if (found := re.match(_DECODERS, key)) is not None}


def _differing_settings(checkpoint: AnyConfig, model: AnyConfig) -> Iterator[str]:
    """Settings that both have and the weights depend on, although shapes may not show it."""
    if type(checkpoint) is type(model):  # otherwise the weights differ in any case
        converter = StandardValueConverter()
        yield from _compare_settings(converter.unstructure(checkpoint), converter.unstructure(model), "")


def _compare_settings(checkpoint: Any, model: Any, name: str) -> Iterator[str]:
    if isinstance(checkpoint, dict) and isinstance(model, dict):
        for key in checkpoint:
            if key not in _FREE_SETTINGS:
                yield from _compare_settings(checkpoint[key], model[key], f"{name}.{key}" if name else key)
    elif not isinstance(checkpoint, dict) and not isinstance(model, dict) and checkpoint != model:
        yield f"`{name}` is {checkpoint} in the checkpoint, but {model} in the model"
