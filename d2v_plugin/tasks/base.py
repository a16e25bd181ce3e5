"""The task: which manifest is read and how it becomes batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fairseq2.datasets import DataReader
from fairseq2.gang import Gangs
from fairseq2.recipe.error import RecipeError

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import Spell
from d2v_plugin.core.registry import ComponentSection
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.data.row_reader import RowReader
from d2v_plugin.models.base import EncoderModel


class Task(ABC):
    """Reads a dataset for training and for probing. Registered by name; see :mod:`d2v_plugin.core.registry`."""

    modality: Modality

    bad_samples_report: Path | None = None
    """A file of the run to which samples that cannot be read are appended."""

    labels: LabelSet | None = None
    """What labels may be; set before labelled readers are created, by :meth:`read_labels` or from a fine-tuned checkpoint."""

    def read_labels(self, dataset: object) -> LabelSet | None:
        """The labels of a dataset; None if the task has none, or if they are numbers."""
        return None

    def read_spelling(self, dataset: object) -> Spell | None:
        """For text: what turns token ids into pieces of words, for pictures; None = nothing known does."""
        return None

    def check_model(self, model: EncoderModel) -> None:  # noqa: B027  # most tasks have nothing to check
        """Called once model and readers are there: whether what was opened suits the model.

        :raises fairseq2.recipe.error.RecipeError: samples cannot be used with it; names them all.
        """

    @abstractmethod
    def create_train_reader(self, dataset: object, gangs: Gangs, seed: int) -> DataReader[Batch]:
        """Endless, shuffled, augmented batches of the training split; gradient accumulation is the task's concern.

        :param dataset: what the dataset family of the recipe opened.
        :param seed: together with the epoch and the sample id the only source of randomness.
        """

    @abstractmethod
    def create_labelled_reader(self, dataset: object, gangs: Gangs, split: str) -> DataReader[Batch]:
        """One ordered pass over a labelled split, without augmentation; every rank reads its share, nothing is dropped.

        :raises fairseq2.recipe.error.SplitNotKnownError: the dataset has no such split.
        """

    def open_rows(self, dataset: object, split: str) -> RowReader:
        """Open a split whose samples are read by row, with or without labels; without augmentation.

        :raises RecipeError: the task cannot read them so.
        :raises fairseq2.recipe.error.SplitNotKnownError: the dataset has no such split.
        """
        name = f"{self.modality.value}_pretraining"
        raise RecipeError(f"`{type(self).__name__}` cannot read rows without their labels; set `task` to {{name: {name}}}.")


@dataclass(kw_only=True)
class TaskSection(ComponentSection):
    """Selects the task."""

    base: ClassVar[type[Task]] = Task

    name: str = "image_pretraining"
