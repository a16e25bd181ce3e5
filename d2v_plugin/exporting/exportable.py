"""A model as it is exported: with its head, and with all that says how inputs are read and what outputs mean."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from fairseq2.logging import log
from fairseq2.runtime.dependency import DependencyResolver, wire_object

from d2v_plugin.core.batch import Modality
from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.core.fairseq2_private import ConfigStructurer
from d2v_plugin.core.registry import ComponentSection, create
from d2v_plugin.criteria.base import Criterion, CriterionSection
from d2v_plugin.criteria.supervised.base import SupervisedCriterion
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.evaluation.checkpoint import load_trained
from d2v_plugin.exporting.vocabulary import find_vocabulary
from d2v_plugin.models.families import AnyModel
from d2v_plugin.tasks.base import Task, TaskSection
from d2v_plugin.weights.directory import HEAD_FILE
from d2v_plugin.weights.loading import load
from d2v_plugin.weights.provenance import Provenance
from d2v_plugin.weights.run_folder import find_checkpoints
from d2v_plugin.weights.sources import Weights, find_provenance

T = TypeVar("T")


@dataclass(frozen=True)
class Exportable:
    """A trained model on its way out."""

    path: str
    """The checkpoint, as it was named."""

    weights: Weights
    """Which of its weights these are."""

    model: AnyModel
    """On the CPU, fp32, in evaluation mode, without gradients; with :attr:`criterion` attached."""

    criterion: SupervisedCriterion[Any] | None
    """The head; None = the encoder alone."""

    task: Task[Any, Any] | None
    """How inputs are read (its ``config``; it has no dataset); None = nothing says it."""

    provenance: Provenance | None
    """The sections of its run; None = nothing is known."""

    files: Sequence[Path]
    """The vocabulary that inputs are read with, or labels are spelled in."""

    @property
    def name(self) -> str:
        """What others may know of where the checkpoint is: the folder of its run, or of the model."""
        checkpoints = find_checkpoints(self.path)
        if checkpoints is None:
            return Path(self.path).name
        return Path(os.path.abspath(checkpoints.parent if checkpoints.name == "checkpoints" else checkpoints)).name

    @property
    def modality(self) -> Modality:
        """What the head takes; of an encoder alone the only modality, or the first of several."""
        if self.task is not None and self.task.modality in self.model.config.frontends:
            return self.task.modality
        return next(iter(self.model.config.frontends))

    @property
    def labels(self) -> LabelSet | None:
        """What the head predicts; None = numbers, or there is no head."""
        return None if self.criterion is None else self.criterion.labels


def read_exportable(
    path: str | Path, resolver: DependencyResolver, *, weights: Weights = "student", head: bool = True
) -> Exportable:
    """Read a checkpoint: the encoder, and its head if it was fine-tuned. The log names what is left out.

    :param path: whatever :func:`d2v_plugin.load` reads.
    :param resolver: knows what is registered: the criterion, the task.
    :param head: False = the encoder alone.
    :raises CheckpointError: as for :func:`d2v_plugin.load`.
    :raises RecipeError: the run names what is not registered.
    """
    provenance = find_provenance(path)
    sections = {} if provenance is None else provenance.sections
    task = create_section(resolver, Task, TaskSection, sections.get("task"))
    criterion = create_section(resolver, Criterion, CriterionSection, sections.get("criterion"))
    files = find_vocabulary(Path(path), sections)
    if not head or not isinstance(criterion, SupervisedCriterion):
        if isinstance(criterion, SupervisedCriterion):
            log.info("The head of {} is left out, as was asked for.", path)
        elif (Path(path) / HEAD_FILE).exists():
            log.warning("{} is left out: nothing says what it predicts, or how.", Path(path) / HEAD_FILE)
        return Exportable(str(path), weights, load(path, weights=weights), None, task, provenance, files)

    assert provenance is not None
    if weights == "teacher":
        raise CheckpointError(f"{path} is fine-tuned and has no teacher; leave `checkpoint.weights` at `student`.")
    model = load_trained(path, criterion, labels=provenance.labels, device=torch.device("cpu"))

    return Exportable(str(path), weights, model, criterion, task, provenance, files)


def create_section(resolver: DependencyResolver, base: type[T], kls: type[ComponentSection], content: Any) -> T | None:
    """Build the component that a section of a run names, with those that its settings name; None = there is no such section."""
    if not content:
        return None
    section = wire_object(resolver, ConfigStructurer).structure(kls, content)
    assert isinstance(section, ComponentSection)

    return create(resolver, base, section)
