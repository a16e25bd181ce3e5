"""Inspection recipe: pictures of a checkpoint, of its mask samplers, and its features for the embedding projector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from fairseq2.recipe.base import RecipeContext
from fairseq2.runtime.dependency import DependencyResolver
from fairseq2.task import Task as Runnable
from PIL import Image
from typing_extensions import override

from d2v_plugin.core.batch import Batch
from d2v_plugin.core.contracts import Spell, StepInfo
from d2v_plugin.core.log import log
from d2v_plugin.core.registry import create, registered_names
from d2v_plugin.core.text import print_unwrapped
from d2v_plugin.criteria.base import Criterion, criterion_of
from d2v_plugin.criteria.supervised.base import SupervisedCriterion
from d2v_plugin.data.row_reader import RowReader
from d2v_plugin.evaluation.checkpoint import load_trained
from d2v_plugin.masking.base import MaskSampler, MaskSection
from d2v_plugin.models.base import EncoderModel, Features
from d2v_plugin.pictures.figures import can_draw, draw_figures, first_samples
from d2v_plugin.pictures.projector import name_samples, write_projector
from d2v_plugin.verbs.common import CheckpointRecipe, RecipeTask, open_task
from d2v_plugin.verbs.inspect.config import InspectConfig
from d2v_plugin.weights.loading import load
from d2v_plugin.weights.run_folder import RunFolder


@final
class InspectRecipe(CheckpointRecipe):
    """Draws pictures of a checkpoint, on one process."""

    config_kls = InspectConfig

    @override
    def create_task(self, context: RecipeContext) -> Runnable:
        config = context.get_config_as(InspectConfig)
        task = open_task(context, config.task)
        rows = task.open_rows(config.split)

        path = config.checkpoint.choose()
        criterion = None if config.criterion is None else create(context.resolver, Criterion, config.criterion)
        model: EncoderModel
        if criterion is None or isinstance(criterion, SupervisedCriterion):
            model = load(path, weights=config.checkpoint.weights, device=context.device)
        else:
            model = load_trained(path, criterion, device=context.device)
        task.check_model(model, ())
        names, samplers = name_samples(context.get_dataset(), config.split, len(rows)), _create_samplers(context.resolver)

        return InspectTask(model, rows, config, context.output_dir, context.device, names, task.read_spelling(), samplers)


@final
@dataclass(eq=False)
class InspectTask(RecipeTask):
    """Writes the pictures."""

    model: EncoderModel
    rows: RowReader
    config: InspectConfig
    output_dir: Path
    device: torch.device

    names: Sequence[str] | None
    """What each row of the split is called in the projector."""

    spell: Spell | None
    samplers: Mapping[str, MaskSampler]

    @override
    @torch.no_grad()
    def run(self) -> None:
        config, places = self.config, RunFolder(self.output_dir)
        folder, log_dir = places.pictures, places.tensorboard
        num_samples = min(config.num_samples, len(self.rows))
        batch = first_samples(next(iter(self.rows.read(0, num_samples, num_samples))), num_samples)
        batch.to(self.device)
        step = StepInfo(number=config.step, seed=config.common.seed)
        pictures = draw_figures(self.model, criterion_of(self.model), batch, step, self.spell).pictures
        if can_draw():
            pictures |= {"samplers": self._draw_samplers(batch)}
            folder.mkdir(parents=True, exist_ok=True)
            for name, picture in pictures.items():
                picture.save(folder / f"{name}.png")
            print_unwrapped(f"\npictures:   {folder}: {', '.join(sorted(pictures))}")
        else:
            log.warning("There are no pictures, because matplotlib is not installed: pip install matplotlib.")
        if config.num_embedded > 0:
            num_embedded = config.num_embedded
            write_projector(log_dir, self.model, self.rows, num_embedded, names=self.names, device=self.device)
            print_unwrapped(f"projector:  tensorboard --logdir {log_dir}")
        self.num_steps = config.step

    def _draw_samplers(self, batch: Batch) -> Image.Image:
        """Draw the masks of every registered sampler with its defaults, on inputs of the model's size."""
        features = self._extract(batch)
        shape = features.grid or (features.x.size(1),)
        drawable = {}
        for name, sampler in self.samplers.items():
            try:
                sampler.validate(shape)
            except ValueError:
                continue  # not for inputs of this shape
            drawable[name] = sampler

        from d2v_plugin.pictures.canvas import render  # loads matplotlib, which may be missing
        from d2v_plugin.pictures.samplers import draw_samplers

        return render(draw_samplers(drawable, shape))

    def _extract(self, batch: Batch) -> Features:
        return self.model.extract_features(batch.inputs, batch.padding_mask, modality=batch.modality)


def _create_samplers(resolver: DependencyResolver) -> dict[str, MaskSampler]:
    samplers = {}
    for name in registered_names(resolver, MaskSampler):
        section = MaskSection(name=name)
        section.structure(resolver)
        samplers[name] = create(resolver, MaskSampler, section)

    return samplers
