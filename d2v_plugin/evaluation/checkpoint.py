"""Models with their criterion, as they were saved: the encoder with its head, or with its teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fairseq2.recipe.error import RecipeError

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.criteria.base import Criterion
from d2v_plugin.criteria.supervised.base import SupervisedCriterion
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.models.families import AnyModel
from d2v_plugin.weights.sources import NativeSource, find_source
from d2v_plugin.weights.state import build_skeleton, compare


def load_fine_tuned(
    path: str | Path, criterion: SupervisedCriterion[Any], labels: LabelSet | None, *, device: torch.device
) -> AnyModel:
    """Load a model with the head that predicts.

    :param path: as for :func:`d2v_plugin.load`; a checkpoint that fine-tuning wrote.
    :param criterion: not built yet.
    :param labels: what the model predicts.
    :raises CheckpointError: the checkpoint cannot be read, or has another head.
    :raises RecipeError: the criterion cannot have trained this model.
    """
    try:
        criterion.set_labels(labels)
    except ValueError as ex:
        raise RecipeError(f"`criterion`: {ex}") from ex

    return load_trained(path, criterion, device=device)


def load_trained(path: str | Path, criterion: Criterion[Any], *, device: torch.device) -> AnyModel:
    """Load a model with its criterion attached, as they were saved, in evaluation mode and without gradients.

    :param path: a checkpoint of a run.
    :param criterion: not built yet.
    :raises CheckpointError: the checkpoint cannot be read, or was trained by another criterion.
    :raises RecipeError: the criterion cannot have trained this model.
    """
    source = find_source(path)
    if not isinstance(source, NativeSource):
        raise CheckpointError(f"{path} is not a checkpoint of a training run, so it has nothing that its criterion needs.")
    state = source.read_all()
    model = build_skeleton(source.config, num_tensors=len(state))
    try:
        criterion.build(model)
    except ValueError as ex:
        raise RecipeError(f"`criterion`: {ex}") from ex
    model.criterion = criterion
    compare(model.state_dict(), state).raise_if_any(f"{source.path} does not hold the weights of this model and criterion:")

    model.to_empty(device=device)
    model.load_state_dict(state)
    model.requires_grad_(False)

    return model.eval()
