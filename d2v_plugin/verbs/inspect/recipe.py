"""The inspection recipe: pictures of a checkpoint, of its mask samplers, and its features for the embedding projector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import torch
from fairseq2.recipe.base import RecipeContext
from fairseq2.recipe.config import CommonSection, DatasetSection, GangSection
from fairseq2.runtime.dependency import DependencyResolver
from fairseq2.task import Task as Runnable
from fairseq2.utils.validation import Validatable, ValidationResult
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from typing_extensions import override

from d2v_plugin.core.batch import Modality
from d2v_plugin.core.contracts import Spell, StepInfo
from d2v_plugin.core.registry import create, registered_names
from d2v_plugin.criteria.base import Criterion, CriterionSection, criterion_of
from d2v_plugin.criteria.supervised.base import SupervisedCriterion
from d2v_plugin.data.dataset import ManifestDataset
from d2v_plugin.data.rows import RowReader
from d2v_plugin.evaluation.checkpoint import load_trained
from d2v_plugin.masking.base import MaskSampler, MaskSection
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.models.pooling import pool_tokens
from d2v_plugin.pictures.inputs import show_image
from d2v_plugin.pictures.recorder import draw_sheet, take
from d2v_plugin.pictures.samplers import draw_samplers
from d2v_plugin.tasks.base import Task, TaskSection
from d2v_plugin.verbs.common import CheckpointSection, choose_checkpoint
from d2v_plugin.verbs.extensions import ExtensibleRecipe
from d2v_plugin.weights.loading import load


@dataclass(kw_only=True)
class InspectConfig(Validatable):
    """The sections of an inspection. Of a run's checkpoint ``task``, ``dataset`` and ``criterion`` are known: a YAML or the
    command line names what shall differ."""

    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    """Which model."""

    task: TaskSection | None = None
    """How samples are prepared; the run's by default."""

    dataset: DatasetSection | None = None
    """What is read; the run's by default."""

    criterion: CriterionSection | None = None
    """What draws masks and has a teacher; the run's by default."""

    split: str = "valid"
    """The manifest, with or without labels."""

    num_samples: int = 4
    """How many samples are shown, from the first on."""

    num_embedded: int = 500
    """How many samples TensorBoard's projector shows; 0 = none."""

    step: int = 1
    """The update whose masks are shown."""

    gang: GangSection = field(default_factory=GangSection)
    """How processes are grouped."""

    common: CommonSection = field(default_factory=lambda: CommonSection(no_sweep_dir=True))
    """Seed, recorders, threads."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.checkpoint.path is None:
            result.add_error("`checkpoint.path` must be set: the output directory of a run, for example.")
        elif self.task is None or self.dataset is None:
            result.add_error(f"`task` and `dataset` must be set, because nothing in {self.checkpoint.path} says what to read.")
        if self.num_samples < 1:
            result.add_error(f"`num_samples` must be at least 1, but is {self.num_samples}.")

        return result


@final
class InspectRecipe(ExtensibleRecipe):
    """Draws pictures of a checkpoint, on one process."""

    @property
    @override
    def config_kls(self) -> type[object]:
        return InspectConfig

    @override
    def create_task(self, context: RecipeContext) -> Runnable:
        config = context.get_config_as(InspectConfig)
        assert config.checkpoint.path is not None and config.task is not None
        task = create(context.resolver, Task, config.task)
        dataset = context.get_dataset()
        rows = task.open_rows(dataset, config.split)
        path = choose_checkpoint(config.checkpoint.path, best=config.checkpoint.best)
        criterion = None if config.criterion is None else create(context.resolver, Criterion, config.criterion)
        model: EncoderModel
        if criterion is None or isinstance(criterion, SupervisedCriterion):
            model = load(path, weights=config.checkpoint.weights, device=context.device)
        else:
            model = load_trained(path, criterion, device=context.device)

        return InspectTask(
            model,
            rows,
            config,
            context.output_dir,
            context.device,
            modality=task.modality,
            names=_name_samples(dataset, config.split, len(rows)),
            spell=task.read_spelling(dataset),
            samplers=_create_samplers(context.resolver),
        )


@final
class InspectTask(Runnable):
    """Writes the pictures."""

    def __init__(
        self,
        model: EncoderModel,
        rows: RowReader,
        config: InspectConfig,
        output_dir: Path,
        device: torch.device,
        *,
        modality: Modality,
        names: Sequence[str] | None,
        spell: Spell | None,
        samplers: dict[str, MaskSampler],
    ) -> None:
        """
        :param names: what each row of the split is called in the projector.
        """
        self._model = model
        self._rows = rows
        self._config = config
        self._output_dir = output_dir
        self._device = device
        self._modality = modality
        self._names = names
        self._spell = spell
        self._samplers = samplers

    @override
    @torch.no_grad()
    def run(self) -> None:
        config, folder = self._config, self._output_dir / "pictures"
        num_samples = min(config.num_samples, len(self._rows))
        batch = take(next(iter(self._rows.read(0, num_samples, num_samples))), num_samples)
        batch.to(self._device)
        step = StepInfo(number=config.step, seed=config.common.seed)
        pictures = draw_sheet(self._model, criterion_of(self._model), batch, step, self._spell).pictures
        num_tokens = self._model.extract_features(batch.inputs, batch.padding_mask, modality=batch.modality).x.size(1)
        pictures |= {"samplers": self._draw_samplers(num_tokens)}

        folder.mkdir(parents=True, exist_ok=True)
        for name, picture in pictures.items():
            picture.save(folder / f"{name}.png")
        print(f"\npictures:   {folder}: {', '.join(sorted(pictures))}", flush=True)
        if config.num_embedded > 0:
            self._project(self._output_dir / "tb")
            print(f"projector:  tensorboard --logdir {self._output_dir / 'tb'}", flush=True)

    def _draw_samplers(self, num_tokens: int) -> Image.Image:
        """Every registered sampler with its defaults, on inputs of the model's size."""
        shape = self._modality.grid_shape(num_tokens)
        drawable = {}
        for name, sampler in self._samplers.items():
            try:
                sampler.validate(shape)
            except ValueError:
                continue  # it has other shapes in mind
            drawable[name] = sampler

        return draw_samplers(drawable, shape)

    def _project(self, log_dir: Path) -> None:
        """Write the mean features of samples, their names and, of images, how they look, for TensorBoard's projector."""
        vectors: dict[int, Tensor] = {}
        looks: dict[int, Tensor] = {}
        for batch in self._rows.read(0, min(self._config.num_embedded, len(self._rows)), 32):
            batch.to(self._device)
            features = self._model.extract_features(batch.inputs, batch.padding_mask, modality=batch.modality)
            pooled = pool_tokens(features.x, features.padding_mask, "mean")
            vectors |= dict(zip(batch.ids.tolist(), pooled.cpu(), strict=True))
            if self._modality is Modality.IMAGE:
                looks |= {row: show_image(x).float() / 255 for row, x in zip(batch.ids.tolist(), batch.inputs, strict=True)}
        rows = sorted(vectors)
        with SummaryWriter(log_dir) as writer:
            writer.add_embedding(
                torch.stack([vectors[row] for row in rows]),
                metadata=None if self._names is None else [self._names[row] for row in rows],
                label_img=torch.stack([looks[row] for row in rows]) if looks else None,
                tag="mean_features",
            )

    @override
    def request_stop(self) -> None:
        pass

    @override
    def close(self) -> None:
        pass

    @property
    @override
    def step_nr(self) -> int:
        return self._config.step


def _name_samples(dataset: object, split: str, num_rows: int) -> list[str] | None:
    """The label of each row; None = there are none, or samples are no rows of the manifest (running text)."""
    if not isinstance(dataset, ManifestDataset):
        return None
    manifest = dataset.split(split)
    if len(manifest) != num_rows:
        return None
    labels = [manifest.text("label", row) for row in range(len(manifest))]

    return None if None in labels else [str(label) for label in labels]


def _create_samplers(resolver: DependencyResolver) -> dict[str, MaskSampler]:
    samplers = {}
    for name in registered_names(resolver, MaskSampler):
        section = MaskSection(name=name)
        section.structure(resolver)
        samplers[name] = create(resolver, MaskSampler, section)

    return samplers
