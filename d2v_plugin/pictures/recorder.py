"""All pictures of a run: which are drawn, when, and where they go."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from fairseq2.logging import log
from PIL import Image
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.tensorboard import SummaryWriter

from d2v_plugin.core.batch import Batch
from d2v_plugin.core.contracts import Spell, StepInfo
from d2v_plugin.criteria.base import Criterion, criterion_of
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.models.statistics import channel_deviations, describe
from d2v_plugin.pictures.features import draw_features, draw_history, draw_scales, draw_similarities, similarities
from d2v_plugin.pictures.inputs import draw_masks
from d2v_plugin.weights.run_folder import RunFolder

GROWTH = 1.15


@dataclass(kw_only=True)
class PicturesSection:
    """Pictures during training."""

    enabled: bool = True
    """The one switch: whether pictures are drawn at all."""

    every_n_steps: int = 200
    """How often at most; as a run grows longer they come in growing distances."""

    num_samples: int = 3
    """How many samples of the first batch are watched."""

    max_share: float = 0.01
    """The largest share of the time of a run that may go into pictures; they wait until they fit."""


@dataclass
class Sheet:
    """The pictures and numbers of one moment."""

    pictures: dict[str, Image.Image] = field(default_factory=dict)
    """By name."""

    numbers: dict[str, list[float]] = field(default_factory=dict)
    """By name, one for each layer."""


def draw_sheet(
    model: EncoderModel, criterion: Criterion[Any] | None, batch: Batch, step: StepInfo, spell: Spell | None = None
) -> Sheet:
    """Draw all pictures of a few samples.

    :param criterion: None = a model for use, which has neither masks nor teacher.
    :param spell: for text: turns token ids into pieces of words.
    """
    sheet = Sheet()
    with _evaluation(model):
        features = model.extract_features(batch.inputs, batch.padding_mask, modality=batch.modality)
        teacher = [] if criterion is None else criterion.teacher_layers(model, batch)
        masks = None if criterion is None else criterion.masks_of(model, batch, step)

    student = [_without_padding(x, features.padding_mask) for x in features.layers]
    teacher = [_without_padding(x, features.padding_mask) for x in teacher]
    if masks is not None:
        sheet.pictures["masks"] = draw_masks(batch, masks, spell)
    sheet.pictures["features"] = draw_features(batch, student, teacher)
    sheet.pictures["similarities"] = draw_similarities(batch, student)
    for name, parameter in model.named_parameters():
        if name.endswith("alibi_scale") and not name.startswith("criterion."):
            sheet.pictures["alibi_scales"] = draw_scales(parameter)

    for who, layers in (("student", student), ("teacher", teacher)):
        if layers:
            sheet.numbers[f"{who}_deviation"] = [float(channel_deviations(x).mean()) for x in layers]
            sheet.numbers[f"{who}_effective_rank"] = [describe(x, features.padding_mask).rank for x in layers]
    sheet.numbers["token_similarity"] = [float(similarities(x).mean()) for x in student]

    return sheet


@final
class Album:
    """Draws a sheet now and then during training, and one at the end, within a share of the run's time."""

    def __init__(
        self,
        section: PicturesSection,
        model: EncoderModel,
        output_dir: Path,
        *,
        seed: int,
        spell: Spell | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """
        :param model: the bare model with its criterion.
        :param clock: seconds that never go back.
        """
        self._section = section
        self._model = model
        self._folder = RunFolder(output_dir).pictures
        self._log_dir = RunFolder(output_dir).tensorboard / "pictures"
        self._seed = seed
        self._spell = spell
        self._clock = clock
        self._writer: SummaryWriter | None = None
        self._batch: Batch | None = None
        self._start: float | None = None
        self._spent = self._last_cost = 0.0
        self._next_step = 1
        self._steps: list[int] = []
        self._history: dict[str, list[list[float]]] = {}

    def attach(self, wrapper: nn.Module, optimizer: Optimizer, step_nr: Callable[[], int]) -> None:
        """Follow a training run.

        :param wrapper: what the trainer calls with batches.
        :param step_nr: tells the update being computed, from 1.
        """

        def watch(module: nn.Module, args: tuple[Any, ...]) -> None:
            self.watch(args[0])
            handle.remove()

        handle = wrapper.register_forward_pre_hook(watch)
        optimizer.register_step_post_hook(lambda optimizer, args, kwargs: self.after_step(step_nr()))

    def watch(self, batch: Batch) -> None:
        """Remember the first samples of the first batch; they are the ones that all pictures show."""
        if self._batch is None:
            self._batch = take(batch, self._section.num_samples)
            self._start = self._clock()

    def after_step(self, step_nr: int) -> None:
        """Draw if pictures are due and fit into their share of the time."""
        if self._start is None or step_nr < self._next_step:
            return
        elapsed = self._clock() - self._start
        if self._spent + self._last_cost > self._section.max_share * elapsed and self._steps:
            return
        self.draw(step_nr)

    def draw(self, step_nr: int) -> None:
        """Draw now; a failure is logged and ends the pictures, not the run."""
        if self._batch is None or (self._steps and self._steps[-1] == step_nr):
            return
        start = self._clock()
        try:
            step = StepInfo(number=max(step_nr, 1), seed=self._seed)
            self._keep(draw_sheet(self._model, criterion_of(self._model), self._batch, step, self._spell), step_nr)
        except (OSError, RuntimeError, ValueError) as ex:
            log.warning("Pictures are switched off from here on, because drawing them failed: {}", ex)
            self._batch, self._start = None, None
        self._last_cost = self._clock() - start
        self._spent += self._last_cost
        self._next_step = max(step_nr + self._section.every_n_steps, int(step_nr * GROWTH))

    def _keep(self, sheet: Sheet, step_nr: int) -> None:
        """Write the pictures as files, the latest of each kind, and all of them to TensorBoard."""
        self._steps.append(step_nr)
        for name, numbers in sheet.numbers.items():
            self._history.setdefault(name, []).append(numbers)
            sheet.pictures[name] = draw_history(self._history[name], self._steps, name.replace("_", " "))

        self._folder.mkdir(parents=True, exist_ok=True)
        with self._folder.joinpath("layers.jsonl").open("a") as file:
            file.write(json.dumps({"step": step_nr, **sheet.numbers}) + "\n")
        self._writer = self._writer or SummaryWriter(self._log_dir)
        for name, picture in sheet.pictures.items():
            picture.save(self._folder / f"{name}.png")
            self._writer.add_image(name, np.asarray(picture), step_nr, dataformats="HWC")
        for name, numbers in sheet.numbers.items():
            for layer, number in enumerate(numbers):
                self._writer.add_scalar(f"{name}/layer_{layer}", number, step_nr)
        self._writer.flush()


def take(batch: Batch, num_samples: int) -> Batch:
    """The first samples of a batch, copied."""

    def first(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[:num_samples].detach().clone()

    inputs, ids = first(batch.inputs), first(batch.ids)
    assert inputs is not None and ids is not None

    return replace(
        batch,
        inputs=inputs,
        ids=ids,
        padding_mask=first(batch.padding_mask),
        labels=first(batch.labels),
        label_lengths=first(batch.label_lengths),
    )


def _without_padding(x: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Zeros where padding was: those features mean nothing."""
    return x if padding_mask is None else x.masked_fill(padding_mask.unsqueeze(-1), 0.0)


@contextmanager
def _evaluation(model: EncoderModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
