"""Several modalities in one run: every update reads batches of one of them, on all ranks the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

from fairseq2.datasets import DataReader
from fairseq2.gang import Gangs
from fairseq2.recipe.error import RecipeError
from fairseq2.runtime.dependency import DependencyResolver
from fairseq2.utils.validation import ValidationResult
from typing_extensions import override

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.ranges import PositiveFloat
from d2v_plugin.core.registry import create
from d2v_plugin.core.validation import Checked, report
from d2v_plugin.data.composed_readers import JoinedReader, find_mixtures, name_sample
from d2v_plugin.data.dataset import MultimodalManifests
from d2v_plugin.data.labels import LabelKind
from d2v_plugin.data.random import Purpose, draw_uniform
from d2v_plugin.data.row_reader import RowReader
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.tasks.base import Task, TaskSection


@dataclass(kw_only=True)
class MultimodalPretrainingConfig(Checked):
    """Settings of ``multimodal_pretraining``."""

    tasks: list[TaskSection] = field(default_factory=list)
    """One task for each modality; each reads its part of a ``multimodal_manifest``."""

    weights: list[PositiveFloat] = field(default_factory=list)
    """How often each task's turn comes, relative to the others; empty = equally often."""

    @override
    def validate(self) -> ValidationResult:
        count, weights = len(self.tasks), self.weights
        is_wrong = len(weights) not in (0, count)

        return report(
            (is_wrong, f"`weights` must hold a positive number for each of the {count} tasks, but is {weights}."),
            base=super().validate(),
        )


class MultimodalPretrainingTask(Task[MultimodalPretrainingConfig, MultimodalManifests]):
    """Alternates between tasks of one modality each; probes see the first."""

    family = MultimodalManifests

    @property
    @override
    def label_kind(self) -> LabelKind:
        return "no labels"

    def __init__(self, config: MultimodalPretrainingConfig, tasks: Sequence[Task[Any, Any]]) -> None:
        modalities = [task.modality for task in tasks]
        if not modalities or len(set(modalities)) < len(modalities):
            names = ", ".join(modality.value for modality in modalities) or "none"
            raise RecipeError(f"`task.config.tasks` must hold one task for each of several modalities, but holds: {names}.")
        super().__init__(config)
        self.tasks = tasks
        self.modality = modalities[0]

    @override
    def create_train_reader(self, gangs: Gangs, seed: int) -> DataReader[Batch]:
        readers = {task.modality: self._open_part(task).create_train_reader(gangs, seed) for task in self.tasks}
        return MultimodalReader(readers, self.config.weights or [1.0] * len(self.tasks), seed)

    @override
    def create_labelled_reader(self, gangs: Gangs, split: str) -> DataReader[Batch]:
        return self._open_part(self.tasks[0]).create_labelled_reader(gangs, split)

    @override
    def open_rows(self, split: str) -> RowReader:
        return self._open_part(self.tasks[0]).open_rows(split)

    @override
    def check_model(self, model: EncoderModel, splits: Iterable[str] | None = None) -> None:
        for part in self._parts.values():
            part.check_model(model, splits if part.modality is self.modality else ())

    @cached_property
    def _parts(self) -> dict[Modality, Task[Any, Any]]:
        """The parts opened so far, each once, so that :meth:`check_model` reaches those that read."""
        return {}

    def _open_part(self, task: Task[Any, Any]) -> Task[Any, Any]:
        if task.modality not in self._parts:
            self._parts[task.modality] = task.open(self.dataset.part(task.modality), report=self.report)
        return self._parts[task.modality]


def create_multimodal_task(resolver: DependencyResolver, config: MultimodalPretrainingConfig) -> MultimodalPretrainingTask:
    """Build the task with the tasks it consists of."""
    return MultimodalPretrainingTask(config, [create(resolver, Task, section) for section in config.tasks])


class MultimodalReader(JoinedReader[Batch]):
    """Draws, for each update, whose turn it is; the draw depends on the seed and the number of the update alone."""

    def __init__(self, readers: Mapping[Modality, DataReader[Batch]], weights: Sequence[float], seed: int) -> None:
        super().__init__({modality.value: reader for modality, reader in readers.items()})
        total = sum(weights)
        self._bounds = [bound / total for bound in accumulate(weights)]
        self._seed = seed
        self._update = 0
        self.mixtures = {
            key: mixture for modality, reader in readers.items() for key, mixture in find_mixtures(reader, modality).items()
        }
        """See :func:`d2v_plugin.data.composed_readers.find_mixtures`."""

    @override
    def __next__(self) -> list[Batch]:
        (place,) = draw_uniform(self._seed, 0, Purpose.MODALITY, self._update, 1)
        turn = next(i for i, bound in enumerate(self._bounds) if place < bound or i == len(self._bounds) - 1)
        batches = next(list(self._readers.values())[turn])
        self._update += 1
        return batches

    def name_sample(self, modality: Modality, sample: int) -> str:
        """See :func:`d2v_plugin.data.composed_readers.name_sample`."""
        return name_sample(self._readers[modality.value], modality, sample)

    @override
    def reset(self) -> None:
        super().reset()
        self._update = 0

    @override
    def state_dict(self) -> dict[str, object]:
        return {"update": self._update, **super().state_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """:raises RecipeError: the state was written with other modalities."""
        then, now = sorted(state_dict.keys() - {"update"}), sorted(self._readers)
        if then != now:
            raise RecipeError(
                f"The checkpoint was written with the modalities {then}, but they are {now} now. Start a new run from its model "
                "instead of resuming."
            )
        super().load_state_dict(state_dict)
        self._update = state_dict["update"]  # type: ignore[assignment]
