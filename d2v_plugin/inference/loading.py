"""A trained model from its checkpoint: with its head, and with what is known about its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fairseq2.recipe.error import RecipeError
from fairseq2.runtime.dependency import DependencyResolver
from fairseq2.utils.structured import StructureError

from d2v_plugin.core.errors import causes
from d2v_plugin.core.log import log
from d2v_plugin.core.registry import ComponentSection, create, registered_names, structure_nested
from d2v_plugin.core.remote import place
from d2v_plugin.criteria.base import Criterion, CriterionSection
from d2v_plugin.criteria.supervised.base import SupervisedCriterion
from d2v_plugin.evaluation.checkpoint import load_trained
from d2v_plugin.inference.model import TrainedModel, Usage, make_usable
from d2v_plugin.inference.settings import InputSettings, list_vocabularies
from d2v_plugin.tasks.base import Task, TaskSection
from d2v_plugin.weights.directory import HEAD_FILE
from d2v_plugin.weights.loading import load as load_encoder
from d2v_plugin.weights.provenance import Provenance
from d2v_plugin.weights.sources import Weights, find_provenance, find_source


def open_model(
    path_or_name: str | Path,
    resolver: DependencyResolver,
    *,
    head: bool,
    weights: Weights,
    device: torch.device,
    dtype: torch.dtype,
    vocabulary: Path | None,
) -> TrainedModel:
    """Load a model for use; see :func:`d2v_plugin.verbs.loading.load`, which documents all parameters.

    :param resolver: knows what checkpoints may name.
    """
    provenance = find_provenance(path_or_name)
    criterion = None
    if provenance is None:
        _report_unknown_head(path_or_name)
    else:
        criterion = _create_head(path_or_name, provenance, resolver, head=head)
    if criterion is None or weights == "teacher":
        model = load_encoder(path_or_name, weights=weights, device=device, dtype=dtype)
    else:
        assert provenance is not None
        model = load_trained(path_or_name, criterion, labels=provenance.labels, device=device)
        model.to(dtype)
    usage = Usage(str(path_or_name), find_settings(path_or_name, provenance, resolver, vocabulary))

    return make_usable(model, usage)


def _create_head(
    path: str | Path, provenance: Provenance, resolver: DependencyResolver, *, head: bool
) -> SupervisedCriterion[Any] | None:
    """The criterion that holds the head; None = there is no head, or it is left out, which the log says.

    :raises RecipeError: an extension is needed.
    """
    section = structure_section(provenance.sections["criterion"], CriterionSection, resolver, needed=head)
    name = provenance.sections["criterion"]["name"]
    criterion = None if section is None else create(resolver, Criterion, section)
    if isinstance(criterion, SupervisedCriterion) and head:
        return criterion
    what = "head" if isinstance(criterion, SupervisedCriterion) else "criterion, which served training alone,"
    log.info("The {} of {} (`{}`) is left out.", what, path, name)

    return None


def _report_unknown_head(path: str | Path) -> None:
    folder = _folder_of(path)
    if (folder / HEAD_FILE).is_file():
        log.warning("{} has a head, but does not say what it predicts: it is left out.", folder)


def find_settings(
    path: str | Path, provenance: Provenance | None, resolver: DependencyResolver, vocabulary: Path | None
) -> InputSettings:
    """What is known about the inputs of a checkpoint's model.

    :param vocabulary: the folder that counts before those of the checkpoint and of its run; None = there is none.
    """
    folder = _folder_of(path)
    if provenance is None:
        return InputSettings(None, {}, list_vocabularies({}, vocabulary, folder))
    section = structure_section(provenance.sections["task"], TaskSection, resolver, needed=False)
    task = None if section is None else create(resolver, Task, section)
    dataset: Mapping[str, Any] = (provenance.sections["dataset"] or {}).get("config_overrides") or {}

    return InputSettings(task, dataset, list_vocabularies(dataset, vocabulary, folder))


def _folder_of(path: str | Path) -> Path:
    """The directory of a model; that of a registered name is where its files are."""
    return place(path) if place(path).is_dir() else find_source(path).path


def structure_section(
    content: Mapping[str, Any], kls: type[ComponentSection], resolver: DependencyResolver, *, needed: bool
) -> Any:
    """Make a section of plain data; None = it names what is not registered, and is not needed.

    :raises RecipeError: it names what is not registered, or its settings are not valid.
    """
    name = str(content["name"])
    if name not in registered_names(resolver, kls.base):
        message = f"`{name}`, which trained the model, is registered by an extension."
        if needed:
            raise RecipeError(f"{message} Give its file, `extensions=[…]`, or leave the head out, `head=False`.")
        log.warning("{}", message)
        return None
    section = kls(name=name, config=content.get("config") or {})
    try:
        structure_nested(resolver, section)
    except StructureError as ex:
        raise RecipeError(f"`{name}`: {' '.join(str(cause) for cause in causes(ex))}") from ex

    return section
