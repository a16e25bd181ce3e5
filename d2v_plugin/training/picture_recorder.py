"""Recorder of pictures during training: when they are drawn, and where they go."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

import numpy as np
from PIL import Image
from typing_extensions import override

from d2v_plugin.core.appended_file import AppendedFile
from d2v_plugin.core.batch import Batch
from d2v_plugin.core.contracts import LossOutput, Spell, StepInfo
from d2v_plugin.core.log import log
from d2v_plugin.core.ranges import NonNegativeFloat, NonNegativeInt, PositiveInt
from d2v_plugin.core.validation import Checked
from d2v_plugin.criteria.base import criterion_of
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.pictures.figures import Figures, can_draw, draw_figures, first_samples
from d2v_plugin.training.observers import Observer
from d2v_plugin.weights.run_folder import RunFolder

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

GROWTH = 1.15

PICTURES = "pictures"
"""The folder within TensorBoard's."""


@dataclass(kw_only=True)
class PicturesSection(Checked):
    """Pictures during training."""

    enabled: bool = True
    """The one switch: whether pictures are drawn at all."""

    every_n_steps: PositiveInt = 200
    """How often at most; the interval grows with the run."""

    num_samples: PositiveInt = 3
    """How many samples of the first batch are watched."""

    num_embedded: NonNegativeInt = 0
    """How many samples of ``probing.valid_split`` TensorBoard's projector shows of the finished model; 0 = none."""

    max_share: NonNegativeFloat = 0.01
    """The largest share of the time of a run that may go into pictures; they wait until they fit."""


@final
class PictureRecorder(Observer):
    """Draws figures of the first samples now and then, and at the end, within a share of the run's time."""

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
        :param model: the bare model with its criterion; not sharded, since one process draws.
        :param clock: seconds that never go back.
        """
        self._section = section
        self._model = model
        self._folder = RunFolder(output_dir).pictures
        self._layers = AppendedFile(self._folder / "layers.jsonl")
        self._log_dir = RunFolder(output_dir).tensorboard / PICTURES
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

    @override
    def after_forward(self, batch: Batch, output: LossOutput) -> None:
        """Remember the first samples of the first batch; they are the ones that all pictures show."""
        if self._start is None:
            self._batch = first_samples(batch, self._section.num_samples)
            self._start = self._clock()

    @override
    def after_update(self, step_nr: int, *, norm: float, losses: Sequence[float], skipped: bool) -> None:
        """Draw if pictures are due and fit into their share of the time."""
        if self._start is None or step_nr < self._next_step:
            return
        elapsed = self._clock() - self._start
        if not self._steps or self._spent + self._last_cost <= self._section.max_share * elapsed:
            self.draw(step_nr)

    @override
    def at_end(self, step_nr: int) -> None:
        if not self._steps or self._steps[-1] != step_nr:
            self.draw(step_nr)

    def draw(self, step_nr: int) -> None:
        """Draw now; a failure is logged and ends the pictures, not the run. What cannot be written is tried again."""
        if self._batch is None:
            return
        start = self._clock()
        try:
            step = StepInfo(number=max(step_nr, 1), seed=self._seed)
            self._save(draw_figures(self._model, criterion_of(self._model), self._batch, step, self._spell), step_nr)
        except OSError as ex:
            log.warning("Pictures cannot be written: {}. They are tried again when they are due.", ex.strerror or ex)
            # The thread behind it has died of the same error.
            self._writer = None
        except (RuntimeError, ValueError) as ex:
            log.warning("Pictures are switched off from here on, because drawing them failed: {}", ex)
            self._batch = None
        self._last_cost = self._clock() - start
        self._spent += self._last_cost
        self._next_step = max(step_nr + self._section.every_n_steps, int(step_nr * GROWTH))

    def _save(self, figures: Figures, step_nr: int) -> None:
        """Write the pictures as files, the latest of each kind, and all of them to TensorBoard."""
        self._steps.append(step_nr)
        for name, numbers in figures.numbers.items():
            self._history.setdefault(name, []).append(numbers)
        if can_draw():
            figures.pictures |= self._draw_curves()
        elif len(self._steps) == 1:
            log.warning("There are no pictures, because matplotlib is not installed: pip install matplotlib. Numbers are kept.")

        self._folder.mkdir(parents=True, exist_ok=True)
        self._layers.add(json.dumps({"step": step_nr, **figures.numbers}) + "\n")
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self._log_dir)
        for name, picture in figures.pictures.items():
            picture.save(self._folder / f"{name}.png")
            self._writer.add_image(f"pictures/{name}", np.asarray(picture), step_nr, dataformats="HWC")
        for name, numbers in figures.numbers.items():
            for layer, number in enumerate(numbers):
                self._writer.add_scalar(f"representation/{name}/{layer}", number, step_nr)
        self._writer.flush()

    def _draw_curves(self) -> dict[str, Image.Image]:
        """Draw what was measured so far, by name."""
        from d2v_plugin.pictures.canvas import render  # loads matplotlib, which may be missing
        from d2v_plugin.pictures.curves import draw_history

        return {name: render(draw_history(history, self._steps, name)) for name, history in self._history.items()}
