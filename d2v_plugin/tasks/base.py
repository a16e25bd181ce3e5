"""The task: which manifest is read and how it becomes batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fairseq2.datasets import DataReader
from fairseq2.gang import Gangs

from d2v_plugin.data.batch import Batch, Modality
from d2v_plugin.registry import ComponentSection


class Task(ABC):
    """Reads a dataset for training and for probing. Registered by name; see :mod:`d2v_plugin.registry`."""

    modality: Modality

    bad_samples_report: Path | None = None
    """A file of the run to which samples that cannot be read are appended."""

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


@dataclass(kw_only=True)
class TaskSection(ComponentSection):
    """Selects the task."""

    base: ClassVar[type[Task]] = Task

    name: str = "image_pretraining"
