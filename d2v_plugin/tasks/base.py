"""The task: which manifest is read and how it becomes batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from fairseq2.datasets import DataReader
from fairseq2.gang import Gangs
from fairseq2.recipe.error import RecipeError
from typing_extensions import Self

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import Spell
from d2v_plugin.core.registry import ComponentSection
from d2v_plugin.core.validation import ensure_valid
from d2v_plugin.data.dataset import expect_dataset
from d2v_plugin.data.labels import LabelKind, LabelSet
from d2v_plugin.data.row_reader import RowReader
from d2v_plugin.models.base import EncoderModel

ConfigT = TypeVar("ConfigT")
DatasetT = TypeVar("DatasetT")


class Task(ABC, Generic[ConfigT, DatasetT]):
    """Reads a dataset for training and for probing. Registered by name; see :mod:`d2v_plugin.core.registry`.

    As a recipe names it, it has settings and nothing to read; :meth:`open` gives it a dataset, which all other methods need.
    """

    modality: Modality

    family: type[DatasetT]
    """The datasets it reads."""

    dataset: DatasetT
    """What is read."""

    report: Path | None
    """The file to which samples that cannot be read are appended; None = none."""

    _known_labels: LabelSet | None

    @property
    def label_kind(self) -> LabelKind | None:
        """What its training batches are labelled with; None = it does not say, and any objective may try."""
        return None

    @property
    def has_fixed_shapes(self) -> bool:
        """Whether inputs of training batches have one size, so that it pays to time the kernels for it (``cudnn.benchmark``)."""
        return False

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    def open(self, dataset: object, *, report: Path | None, labels: LabelSet | None = None) -> Self:
        """Return this task with a dataset to read.

        :param dataset: what the dataset family of the recipe opened.
        :param report: a file of the run to which samples that cannot be read are appended; None = none.
        :param labels: those of a fine-tuned checkpoint; None = those of the dataset.
        :raises ValueError: settings are impossible, which a recipe would have been told before.
        :raises fairseq2.recipe.error.DatasetTypeNotValidError: the dataset is of another family.
        """
        ensure_valid(self.config)
        opened = copy(self)
        opened.dataset = expect_dataset(dataset, self.family)
        opened.report = report
        opened._known_labels = labels
        return opened

    @cached_property
    def labels(self) -> LabelSet | None:
        """All labels there are; None if the task has none, or if they are numbers. Of a dataset they are read once."""
        return self._known_labels or self._read_labels()

    def _read_labels(self) -> LabelSet | None:
        """Read the labels of the dataset."""
        return None

    def read_spelling(self) -> Spell | None:
        """For text: what turns token ids into pieces of words, for pictures; None = nothing known does."""
        return None

    def check_model(self, model: EncoderModel, splits: Iterable[str] | None = None) -> None:
        """Check that what is read suits the model; to be called before anything is read.

        :param splits: the labelled splits that are read; None = all that the dataset has.
        :raises fairseq2.recipe.error.RecipeError: the model is for another modality, or samples do not suit it; names them all.
        """
        try:
            model.resolve_modality(self.modality)
        except ValueError as ex:
            raise RecipeError(
                f"`task` reads {self.modality.value}, which the model does not take. {ex} Name a task and a dataset for that, or "
                "another model."
            ) from ex

    @abstractmethod
    def create_train_reader(self, gangs: Gangs, seed: int) -> DataReader[Batch]:
        """Endless, shuffled, augmented batches of the training split; gradient accumulation is the task's concern.

        :param seed: together with the epoch and the sample id the only source of randomness.
        """

    @abstractmethod
    def create_labelled_reader(self, gangs: Gangs, split: str) -> DataReader[Batch]:
        """One ordered pass over a labelled split, without augmentation; every rank reads its share, nothing is dropped.

        :raises fairseq2.recipe.error.SplitNotKnownError: the dataset has no such split.
        """

    def open_rows(self, split: str) -> RowReader:
        """Open a split whose samples are read by row, with or without labels; without augmentation.

        :raises RecipeError: the task cannot read them so.
        :raises fairseq2.recipe.error.SplitNotKnownError: the dataset has no such split.
        """
        name = f"{self.modality.value}_pretraining"
        raise RecipeError(f"`{type(self).__name__}` cannot read rows without their labels; set `task` to {{name: {name}}}.")

    def locate(self, split: str, row: int) -> str:
        """Tell where a sample of a labelled split lies: its file, perhaps with the bytes or the line; empty = it is not known."""
        return ""


@dataclass(kw_only=True)
class TaskSection(ComponentSection):
    """Selects the task."""

    base: ClassVar[type[Task[Any, Any]]] = Task

    name: str = "image_pretraining"
