"""Models for use in Python, with everything registered that a checkpoint may name."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import fairseq2.recipe  # noqa: F401  # first: other parts of fairseq2 cannot be imported before it
import torch
from fairseq2.recipe.component import ComponentManager
from fairseq2.runtime.dependency import DependencyResolver

from d2v_plugin.core.fairseq2_private import current_resolver
from d2v_plugin.inference.loading import open_model
from d2v_plugin.inference.model import TrainedModel
from d2v_plugin.verbs.extensions import load_extension, open_library
from d2v_plugin.weights.sources import Weights


def load(
    path_or_name: str | Path,
    *,
    head: bool = True,
    weights: Weights = "student",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    vocabulary: str | Path | None = None,
    extensions: Sequence[str | Path] = (),
) -> TrainedModel:
    """Load a model for use: in evaluation mode, without gradients.

    All models have ``extract_features`` and ``embed``; a fine-tuned one keeps its head and has ``transcribe``, ``classify`` or
    ``tag``, and ``answer`` whatever its head is. What is left out, such as the teacher of pre-training, the log names.

    :param path_or_name: a directory written by ``fairseq2 recipe convert``; the output directory of a run, its
        ``checkpoints`` (both mean the last complete checkpoint) or one of its ``step_N``; or the name of a registered model.
    :param head: False = the encoder alone.
    :param weights: ``teacher`` takes the averaged weights for all modules that the teacher has, the student's for the others.
    :param device: None = the CPU.
    :param dtype: None = fp32.
    :param vocabulary: for text models, the folder with the vocabulary; None = that of the checkpoint or of its run.
    :param extensions: files that register what the run used, as for ``--extension``.
    :raises CheckpointError: there is no such checkpoint, it cannot be read, or its weights are not those of its
        configuration; the message lists all keys.
    :raises RecipeError: the head is that of a criterion that no extension registers.
    """
    return open_model(
        path_or_name,
        _find_resolver(tuple(map(str, extensions))),
        head=head,
        weights=weights,
        device=torch.device(device or "cpu"),
        dtype=dtype or torch.float32,
        vocabulary=None if vocabulary is None else Path(vocabulary),
    )


def _find_resolver(extensions: tuple[str, ...]) -> DependencyResolver:
    """fairseq2's objects: those of a recipe that runs in this process, otherwise our own, which change nothing global."""
    resolver = current_resolver()
    if resolver is not None and not extensions and resolver.maybe_resolve(ComponentManager) is not None:
        return resolver
    return _open_library(extensions)


@cache
def _open_library(extensions: tuple[str, ...]) -> DependencyResolver:
    return open_library([load_extension(Path(path)) for path in extensions])
