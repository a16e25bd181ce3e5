"""Common parts of the recipes that work on a checkpoint."""

from __future__ import annotations

import hashlib
from argparse import Namespace
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import torch
from fairseq2.recipe.base import RecipeContext
from fairseq2.recipe.config import CommonSection, DatasetSection, TorchConfig
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.task import Task as Runnable
from fairseq2.utils.validation import ValidationResult
from torch import nn
from typing_extensions import override

from d2v_plugin.core.ranges import PositiveInt, Range
from d2v_plugin.core.registry import create
from d2v_plugin.core.validation import Checked, report
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.tasks.base import Task, TaskSection
from d2v_plugin.training.malloc import keep_freed_memory
from d2v_plugin.verbs.defaults import use_settings_of_run
from d2v_plugin.verbs.extensions import ExtensibleRecipe
from d2v_plugin.weights.run_folder import RunFolder, find_step, name_average, split_average

BASELINE_SEED: Final = 1
"""The seed of a random model's weights, in every run of an arch."""


@dataclass(kw_only=True)
class BoundedTorchConfig(Checked, TorchConfig):
    """fairseq2's section, checked before PyTorch is told."""

    num_threads: Annotated[int | None, Range(">= 1 or null")] = None


@dataclass(kw_only=True)
class BoundedCommonSection(Checked, CommonSection):
    """fairseq2's section; the output directory is used as it is given, so that a repeated command resumes."""

    torch: BoundedTorchConfig = field(default_factory=BoundedTorchConfig)
    """Settings of PyTorch."""

    seed: Annotated[int, Range(f">= 0, <= {2**32 - 9:,}")] = 2

    no_sweep_dir: bool = True


@dataclass(kw_only=True)
class CheckpointSection(Checked):
    """Selects a checkpoint, and the weights in it."""

    path: str | None = None
    """The output directory of a run, its ``checkpoints`` or one of its ``step_N``; a directory written by
    `fairseq2 recipe convert`; or a registered name."""

    best: bool = False
    """Of several checkpoints take the one with the best score (``regime.score_metric`` of the run) instead of the last one."""

    average: PositiveInt = 1
    """The mean of the weights of so many checkpoints: of the run's last ones, or of ``step_N`` and those before it."""

    weights: Literal["student", "teacher"] = "student"
    """Which weights are probed; fine-tuned models have no teacher."""

    def choose(self) -> str | Path:
        """Choose the last or the best checkpoint of a run, ``step_N``, or the mean of several, ``step_N@average=5``; a path that
        is not one of a run stays as it is.

        :raises CheckpointError: there is none.
        """
        assert self.path is not None
        path, count = split_average(self.path)
        step = find_step(path, best=self.best)
        count = max(self.average, count)
        if count > 1:
            return name_average(path if step is None else step, count)

        return path if step is None else step


@dataclass(kw_only=True)
class CheckpointConfig(Checked):
    """The first sections of every recipe that works on a checkpoint. Those that a checkpoint's run had, too, are known: a YAML or
    the command line names what shall differ."""

    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    """Which model."""

    task: TaskSection | None = None
    """How samples are read and prepared; the run's by default."""

    dataset: DatasetSection | None = None
    """What is read; the run's by default."""

    @override
    def validate(self) -> ValidationResult:
        path, has_data = self.checkpoint.path, self.task is not None and self.dataset is not None

        return report(
            (
                self.checkpoint.average > 1 and self.checkpoint.best,
                "`checkpoint.average` takes the last checkpoints and `checkpoint.best` the best one; set one of them.",
            ),
            (path is None, "`checkpoint.path` must be set: the output directory of a run, for example."),
            (
                path is not None and not has_data,
                f"`task` and `dataset` must be set, because nothing in {path} says what to read.",
            ),
            base=super().validate(),
        )


class CheckpointRecipe(ExtensibleRecipe):
    """A recipe that works on a checkpoint, whose run says what the recipe and the command line do not."""

    @override
    def register(self, container: DependencyContainer) -> None:
        super().register(container)
        keep_freed_memory()

    @override
    def resolve_arguments(self, args: Namespace) -> Namespace:
        """
        :raises CheckpointError: there is no such checkpoint.
        :raises RecipeError: as for the base class.
        """
        return use_settings_of_run(args, sections=[section.name for section in fields(self.config_kls)])  # type: ignore[arg-type]


def open_task(context: RecipeContext, section: TaskSection | None, labels: LabelSet | None = None) -> Task[Any, Any]:
    """Open the dataset of a valid recipe by its task, which reports bad samples in the output directory.

    :param labels: those of a fine-tuned checkpoint; None = those of the dataset.
    """
    assert section is not None
    report = RunFolder(context.output_dir).bad_samples

    return create(context.resolver, Task, section).open(context.get_dataset(), report=report, labels=labels)


class RecipeTask(Runnable):
    """A task of a recipe, by itself or around another one that does the work."""

    inner: Runnable | None = None
    """Counts the steps, and knows how to stop; None = the task itself does, by the attributes below."""

    stop_requested = False
    num_steps = 0

    @override
    def request_stop(self) -> None:
        self.stop_requested = True
        if self.inner is not None:
            self.inner.request_stop()

    @override
    def close(self) -> None:
        if self.inner is not None:
            self.inner.close()

    @property
    @override
    def step_nr(self) -> int:
        return self.num_steps if self.inner is None else self.inner.step_nr


def hash_weights(model: nn.Module) -> str:
    """Compute a digest that tells models apart."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().data)

    return digest.hexdigest()
