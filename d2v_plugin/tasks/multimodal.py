"""Several modalities in one run: every update reads batches of one of them, on all ranks the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from fairseq2.datasets import DataReader
from fairseq2.gang import Gangs
from fairseq2.recipe.error import RecipeError
from fairseq2.runtime.dependency import DependencyResolver
from typing_extensions import Self, override

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.registry import create
from d2v_plugin.data.dataset import MultimodalManifests, expect_dataset
from d2v_plugin.data.random import Purpose, draw_uniform
from d2v_plugin.data.reader import name_sample
from d2v_plugin.data.row_reader import RowReader
from d2v_plugin.tasks.base import Task, TaskSection


@dataclass(kw_only=True)
class MultimodalPretrainingConfig:
    """Settings of ``multimodal_pretraining``."""

    tasks: list[TaskSection] = field(default_factory=list)
    """One task for each modality; each reads its part of a ``multimodal_manifest``."""

    weights: list[float] = field(default_factory=list)
    """How often each task's turn comes, relative to the others; empty = equally often."""

    def __post_init__(self) -> None:
        num_tasks = len(self.tasks)
        if self.weights and (len(self.weights) != num_tasks or min(self.weights) <= 0.0):
            raise ValueError(f"`weights` must hold a positive number for each of the {num_tasks} tasks, but is {self.weights}.")


class MultimodalPretrainingTask(Task):
    """Alternates between tasks of one modality each; probes see the first."""

    def __init__(self, config: MultimodalPretrainingConfig, tasks: Sequence[Task]) -> None:
        modalities = [task.modality for task in tasks]
        if not modalities or len(set(modalities)) < len(modalities):
            names = ", ".join(modality.value for modality in modalities) or "none"
            raise RecipeError(f"`task.config.tasks` must hold one task for each of several modalities, but holds: {names}.")
        self.config = config
        self.tasks = tasks
        self.modality = modalities[0]

    @override
    def create_train_reader(self, dataset: object, gangs: Gangs, seed: int) -> DataReader[Batch]:
        manifests = expect_dataset(dataset, MultimodalManifests)
        for task in self.tasks:
            task.bad_samples_report = self.bad_samples_report
        readers = {task.modality: task.create_train_reader(manifests.part(task.modality), gangs, seed) for task in self.tasks}

        return MultimodalReader(readers, self.config.weights or [1.0] * len(self.tasks), seed)

    @override
    def create_labelled_reader(self, dataset: object, gangs: Gangs, split: str) -> DataReader[Batch]:
        part = expect_dataset(dataset, MultimodalManifests).part(self.modality)

        return self.tasks[0].create_labelled_reader(part, gangs, split)

    @override
    def open_rows(self, dataset: object, split: str) -> RowReader:
        return self.tasks[0].open_rows(expect_dataset(dataset, MultimodalManifests).part(self.modality), split)


def create_multimodal_task(resolver: DependencyResolver, config: MultimodalPretrainingConfig) -> MultimodalPretrainingTask:
    """Build the task with the tasks it consists of."""
    return MultimodalPretrainingTask(config, [create(resolver, Task, section) for section in config.tasks])


class MultimodalReader(DataReader[Batch]):
    """Draws, for each update, whose turn it is; the draw depends on the seed and the number of the update alone."""

    def __init__(self, readers: Mapping[Modality, DataReader[Batch]], weights: Sequence[float], seed: int) -> None:
        self._readers = readers
        total = sum(weights)
        self._bounds = [bound / total for bound in accumulate(weights)]
        self._seed = seed
        self._update = 0

    @override
    def __iter__(self) -> Self:
        return self

    @override
    def __next__(self) -> list[Batch]:
        (place,) = draw_uniform(self._seed, 0, Purpose.MODALITY, self._update, 1)
        turn = next(i for i, bound in enumerate(self._bounds) if place < bound or i == len(self._bounds) - 1)
        self._update += 1

        return next(list(self._readers.values())[turn])

    def name_sample(self, modality: Modality, sample: int) -> str:
        """See :func:`d2v_plugin.data.reader.name_sample`."""
        return name_sample(self._readers[modality], modality, sample)

    @override
    def reset(self) -> None:
        self._update = 0
        for reader in self._readers.values():
            reader.reset()

    @override
    def state_dict(self) -> dict[str, object]:
        return {"update": self._update, **{modality.value: reader.state_dict() for modality, reader in self._readers.items()}}

    @override
    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """:raises RecipeError: the state was written with other modalities."""
        known = {modality.value for modality in self._readers} | {"update"}
        if state_dict.keys() != known:
            raise RecipeError(
                f"The checkpoint was written with the modalities {sorted(state_dict.keys() - {'update'})}, but they are "
                f"{sorted(known - {'update'})} now. Start a new run from its model instead of resuming."
            )
        for modality, reader in self._readers.items():
            reader.load_state_dict(state_dict[modality.value])  # type: ignore[arg-type]
        self._update = state_dict["update"]  # type: ignore[assignment]

    @property
    @override
    def num_accumulate(self) -> int:
        return max(reader.num_accumulate for reader in self._readers.values())
