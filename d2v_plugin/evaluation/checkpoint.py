"""Models with their criterion: the encoder with its head, or with its teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fairseq2.recipe.error import RecipeError

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.criteria.base import Criterion
from d2v_plugin.criteria.supervised.base import SupervisedCriterion
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.models.base import CRITERION_PREFIX, EncoderModel
from d2v_plugin.models.families import AnyModel
from d2v_plugin.weights.sources import find_source
from d2v_plugin.weights.state import build_skeleton, compare, fill_skeleton


def load_trained(
    path: str | Path, criterion: Criterion[Any], *, labels: LabelSet | None = None, device: torch.device
) -> AnyModel:
    """Load a model with its criterion attached, as they were saved, in evaluation mode and without gradients.

    :param path: a checkpoint of a run, or a directory of a fine-tuned model.
    :param criterion: not built yet.
    :param labels: what a fine-tuned model predicts.
    :raises CheckpointError: the checkpoint cannot be read, or was trained by another criterion.
    :raises RecipeError: the criterion cannot have trained this model.
    """
    source = find_source(path)
    state = source.read_all()
    if not any(key.startswith(CRITERION_PREFIX) for key in state):
        raise CheckpointError(f"{path} has nothing that belongs to a criterion: no head and no teacher.")
    model = build_skeleton(source.config, num_tensors=len(state), path=source.path)
    attach_criterion(model, criterion, labels)
    compare(model.state_dict(), state).raise_if_any(f"{source.path} does not hold the weights of this model and criterion:")

    return fill_skeleton(model, state, device=device)


def attach_criterion(
    model: EncoderModel, criterion: Criterion[Any], labels: LabelSet | None = None, *, called: str = "`criterion`"
) -> None:
    """Build what a criterion owns beside a model, and make it a part of the model.

    :param labels: what a criterion of fine-tuning predicts.
    :param called: how an error names the criterion.
    :raises RecipeError: the criterion cannot train this model, or predict these labels.
    """
    try:
        if isinstance(criterion, SupervisedCriterion):
            criterion.set_labels(labels)
        criterion.build(model)
    except ValueError as ex:
        raise RecipeError(f"{called}: {ex}") from ex
    model.criterion = criterion
