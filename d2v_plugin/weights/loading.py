"""Models for use, and weights for new runs, from any checkpoint of this package."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from d2v_plugin.core.batch import Grid
from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.core.log import log
from d2v_plugin.models.base import EncoderModel, drop_criterion
from d2v_plugin.models.families import AnyConfig, AnyModel
from d2v_plugin.weights.adoption import fit, read_foreign
from d2v_plugin.weights.convert.transfer import Foreign, Transfer
from d2v_plugin.weights.positions import resize_positions
from d2v_plugin.weights.settings import find_differing_settings
from d2v_plugin.weights.sources import Weights, find_source
from d2v_plugin.weights.state import State, build_skeleton, compare, fill_skeleton

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

    :param path_or_name: a directory written by ``fairseq2 recipe convert``; the output directory of a run, its
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

    Of others' models, and of data2vec 1.0's in one of 2.0, what fits comes over; the log has a table of what does, what is new
    and what is left out (recipes/other_models.md).

    :param model: newly initialised, on any device. On the meta device nothing happens: there fairseq2 itself fills the
        model, from rank 0 or from the run's own checkpoint.
    :param path_or_name: as for :func:`load`; or a file of fairseq, a folder of Hugging Face, a run or a named model of fairseq2.
    :param weights: as for :func:`load`.
    :raises CheckpointError: as for :func:`load`, or the checkpoint holds another model; nothing has been copied then.
    """
    _check_weights(weights)
    if not isinstance(model, AnyModel):
        raise CheckpointError(f"{path_or_name} cannot be loaded into a {type(model).__name__}.")
    own = drop_criterion(model.state_dict())
    if any(tensor.is_meta for tensor in own.values()):
        return

    foreign = read_foreign(path_or_name, weights)
    if foreign is None:
        source = find_source(path_or_name)
        _check_modality(source.path, source.config, model.config)
        if type(source.config) is type(model.config):
            state = source.read(weights)
            _match_decoders(own, state)
            resize_positions(state, own, old=_grid_of(source.config), new=_grid_of(model.config))
            mismatch = compare(own, state)
            mismatch.settings = list(find_differing_settings(source.config, model.config))
            mismatch.raise_if_any(f"{source.path} does not hold the weights of this model:")
            _copy(state, own)
            log.info("Loaded {} tensors ({} weights) from {}.", len(state), weights, source.path)
            return
        foreign = Foreign(config=source.config, state=source.read(weights), transfer=Transfer(f"{source.path} ({weights})"))

    _check_modality(path_or_name, foreign.config, model.config)
    state, transfer = fit(own, model.config, foreign, path_or_name)
    _copy(state, own)
    log.info("Loaded {} tensors from {}. {}", len(state), path_or_name, "\n".join(transfer.format()))


def _grid_of(config: AnyConfig) -> Grid | None:
    return None if config.image is None else config.image.grid


def _copy(state: State, own: State) -> None:
    with torch.no_grad():
        for key, tensor in state.items():
            own[key].copy_(tensor)


def _check_modality(path: str | Path, checkpoint: AnyConfig, model: AnyConfig) -> None:
    if not checkpoint.frontends.keys() & model.frontends.keys():
        theirs, ours = (" and ".join(part.value for part in config.frontends) for config in (checkpoint, model))
        raise CheckpointError(f"{path} is a model of {theirs}; a model of {ours} cannot start from it.")


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
