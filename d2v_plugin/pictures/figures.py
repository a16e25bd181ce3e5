"""Figures of a model at one moment: pictures and numbers of a few samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from d2v_plugin.core.batch import Batch
from d2v_plugin.core.contracts import Spell, StepInfo
from d2v_plugin.criteria.base import Criterion
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.models.statistics import channel_deviations, describe
from d2v_plugin.pictures.features import draw_features, draw_scales, draw_similarities, similarities
from d2v_plugin.pictures.inputs import draw_masks


@dataclass
class Figures:
    """Pictures and numbers of one moment."""

    pictures: dict[str, Image.Image] = field(default_factory=dict)
    """By name."""

    numbers: dict[str, list[float]] = field(default_factory=dict)
    """By name, one for each layer."""


def draw_figures(
    model: EncoderModel, criterion: Criterion[Any] | None, batch: Batch, step: StepInfo, spell: Spell | None = None
) -> Figures:
    """Draw all pictures of a few samples.

    :param criterion: None = a model for use, which has neither masks nor teacher.
    :param spell: for text: turns token ids into pieces of words.
    """
    with _evaluation(model):
        features = model.extract_features(batch.inputs, batch.padding_mask, modality=batch.modality)
        teacher = [] if criterion is None else criterion.teacher_layers(model, batch)
        masks = None if criterion is None else criterion.masks_of(model, batch, step)
    student, teacher = _blank_padding(features.layers, features.padding_mask), _blank_padding(teacher, features.padding_mask)

    figures = Figures()
    if masks is not None:
        figures.pictures["masks"] = draw_masks(batch, masks, spell)
    figures.pictures["features"] = draw_features(batch, student, teacher)
    figures.pictures["similarities"] = draw_similarities(batch, student)
    for name, parameter in model.named_parameters():
        if name.endswith("alibi_scale") and not name.startswith("criterion."):
            figures.pictures["alibi_scales"] = draw_scales(parameter)

    for who, layers in (("student", student), ("teacher", teacher)):
        if layers:
            figures.numbers[f"{who}_deviation"] = [float(channel_deviations(x).mean()) for x in layers]
            figures.numbers[f"{who}_effective_rank"] = [describe(x, features.padding_mask).rank for x in layers]
    figures.numbers["token_similarity"] = [float(similarities(x).mean()) for x in student]

    return figures


def first_samples(batch: Batch, num_samples: int) -> Batch:
    """Copy the first samples of a batch."""
    first = copy(batch)
    for name, value in vars(batch).items():
        if isinstance(value, Tensor):
            setattr(first, name, value[:num_samples].detach().clone())

    return first


def _blank_padding(layers: list[Tensor], padding_mask: Tensor | None) -> list[Tensor]:
    """Put zeros where padding was: those features mean nothing."""
    return layers if padding_mask is None else [x.masked_fill(padding_mask.unsqueeze(-1), 0.0) for x in layers]


@contextmanager
def _evaluation(model: EncoderModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
