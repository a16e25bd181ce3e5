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
from d2v_plugin.models.statistics import channel_deviations, describe, token_similarities


@dataclass
class Figures:
    """Pictures and numbers of one moment."""

    pictures: dict[str, Image.Image] = field(default_factory=dict)
    """By name; none without matplotlib."""

    numbers: dict[str, list[float]] = field(default_factory=dict)
    """By name, one for each layer."""


def can_draw() -> bool:
    """Whether matplotlib is installed, and can be imported."""
    try:
        import d2v_plugin.pictures.canvas  # noqa: F401
    except ImportError:
        return False

    return True


def draw_figures(
    model: EncoderModel, criterion: Criterion[Any] | None, batch: Batch, step: StepInfo, spell: Spell | None = None
) -> Figures:
    """Measure a few samples, and draw them if that is possible (:func:`can_draw`).

    :param criterion: None = a model for use, which has neither masks nor teacher.
    :param spell: for text: turns token ids into pieces of words.
    """
    with _evaluation(model):
        features = model.extract_features(batch.inputs, batch.padding_mask, modality=batch.modality)
        teacher = [] if criterion is None else criterion.teacher_layers(model, batch)
        masks = None if criterion is None else criterion.masks_of(model, batch, step)
    student, padding_mask = features.layers, features.padding_mask

    figures = Figures()
    for who, layers in (("student", student), ("teacher", teacher)):
        if layers:
            deviations = [channel_deviations(x if padding_mask is None else x[~padding_mask]) for x in layers]
            figures.numbers[f"{who}_deviation"] = [float(x.mean()) for x in deviations]
            figures.numbers[f"{who}_effective_rank"] = [describe(x, padding_mask).rank for x in layers]
    samples = [_without_padding(student, padding_mask, sample) for sample in range(batch.num_examples)]
    similarities = torch.tensor([[float(token_similarities(x).mean()) for x in layers] for layers in samples])
    figures.numbers["token_similarity"] = similarities.mean(dim=0).tolist()
    if not can_draw():
        return figures

    # matplotlib is loaded by what draws, and by nothing else.
    from d2v_plugin.pictures.canvas import render
    from d2v_plugin.pictures.curves import draw_scales
    from d2v_plugin.pictures.features import draw_features, draw_similarities
    from d2v_plugin.pictures.masks import draw_masks

    if masks is not None:
        figures.pictures["masks"] = render(draw_masks(batch, masks, spell))
    figures.pictures["features"] = render(draw_features(batch, student, teacher, padding_mask, features.grid))
    figures.pictures["similarities"] = render(draw_similarities(int(batch.ids[0]), samples[0]))
    for name, parameter in model.named_parameters():
        if name.endswith("alibi_scale") and not name.startswith("criterion."):
            figures.pictures["alibi_scales"] = render(draw_scales(parameter))

    return figures


def first_samples(batch: Batch, num_samples: int) -> Batch:
    """Copy the first samples of a batch."""
    first = copy(batch)
    for name, value in vars(batch).items():
        if isinstance(value, Tensor):
            setattr(first, name, value[:num_samples].detach().clone())

    return first


def _without_padding(layers: list[Tensor], padding_mask: Tensor | None, sample: int) -> list[Tensor]:
    """The tokens of a sample: L times (N, S, D) -> L times (S', D)."""
    return [x[sample] if padding_mask is None else x[sample][~padding_mask[sample]] for x in layers]


@contextmanager
def _evaluation(model: EncoderModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
