"""Provenance of a checkpoint: the task, the dataset, the criterion and the labels of its run.

The training recipe writes it beside the checkpoints, as ``checkpoints/origin.yaml``, so that a folder of checkpoints can be
evaluated by itself; a converted or exported directory has it in its ``config.json``, if it has a head.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fairseq2.recipe.error import RecipeError
from fairseq2.utils.structured import StandardValueConverter
from ruamel.yaml import YAML

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.core.plain_yaml import PlainYamlError, read_yaml
from d2v_plugin.core.remote import place
from d2v_plugin.core.secrets import hide_in_data
from d2v_plugin.core.storage import write_atomically
from d2v_plugin.core.store import is_url
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.weights.run_folder import PROVENANCE_FILE

SECTIONS: Final = ("task", "dataset", "criterion")
"""Sections of a training recipe, which :class:`d2v_plugin.verbs.evaluate.config.EvaluateConfig` has, too."""


@dataclass(frozen=True)
class Provenance:
    """Settings by which the model of a checkpoint was trained."""

    sections: Mapping[str, Any]
    """``task``, ``dataset`` and ``criterion`` as plain data."""

    labels: LabelSet | None
    """What the model predicts; None = no labels, or numbers."""


def describe_provenance(config: object, labels: LabelSet | None) -> Provenance:
    """The provenance of what a training recipe trains.

    :param config: has the sections as attributes.
    """
    sections = {name: StandardValueConverter().unstructure(getattr(config, name)) for name in SECTIONS}

    # The evaluation may be started elsewhere.
    return Provenance({**sections, "dataset": _make_absolute(sections["dataset"])}, labels)


def write_provenance(checkpoints: Path, provenance: Provenance) -> None:
    """Write the file, at once."""
    text = io.StringIO()
    YAML(typ="safe", pure=True).dump(unstructure_provenance(provenance), text)
    write_atomically(checkpoints / PROVENANCE_FILE, text.getvalue())


def read_provenance(checkpoints: Path) -> Provenance:
    """Read the file of a folder of checkpoints.

    :raises CheckpointError: it cannot be read.
    """
    path = checkpoints / PROVENANCE_FILE
    try:
        content = read_yaml(path)
    except PlainYamlError as ex:
        raise CheckpointError(f"{path} {ex}.") from ex
    except OSError as ex:
        raise CheckpointError(f"{path} cannot be read: {ex}") from ex

    return structure_provenance(content, path)


def unstructure_provenance(provenance: Provenance) -> dict[str, Any]:
    """Make plain data of it, without passwords."""
    labels = provenance.labels
    content = {**provenance.sections, "labels": None if labels is None else list(labels.names)}
    hidden: dict[str, Any] = hide_in_data(content)

    return hidden


def structure_provenance(content: object, path: Path) -> Provenance:
    """Make it of plain data.

    :param path: where they stand, for the message.
    :raises CheckpointError: something is missing, or of the wrong type.
    """
    if not isinstance(content, dict) or any(name not in content for name in (*SECTIONS, "labels")):
        raise CheckpointError(f"{path} does not say {', '.join((*SECTIONS, 'labels'))}.")
    for name in ("task", "criterion"):
        if not isinstance(content[name], dict) or not isinstance(content[name].get("name"), str):
            raise CheckpointError(f"{path}: `{name}` must have a `name`.")
    labels = content["labels"]
    if labels is not None and not (isinstance(labels, list) and labels and all(isinstance(label, str) for label in labels)):
        raise CheckpointError(f"{path}: `labels` must be a list of names, or null.")

    return Provenance({name: content[name] for name in SECTIONS}, None if labels is None else LabelSet(labels))


def check_labels(checkpoints: Path, labels: LabelSet | None) -> None:
    """Check that a run that goes on finds the labels that it began with.

    :raises RecipeError: it does not; the head's outputs would change their meaning.
    """
    if not (checkpoints / PROVENANCE_FILE).is_file():
        return
    began = read_provenance(checkpoints).labels
    before, now = ([] if found is None else list(found.names) for found in (began, labels))
    if before != now:
        changed = sorted(set(before) ^ set(now)) or ["their order"]
        raise RecipeError(
            f"The dataset's labels are not those that the run in {checkpoints} began with: {len(before)} then, {len(now)} now; "
            f"what differs: {', '.join(changed[:5])}. Start a new run."
        )


def _make_absolute(value: Any) -> Any:
    """Make whatever is called ``path``, and is one, absolute."""
    if isinstance(value, list):
        return [_make_absolute(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    return {
        key: (str(place(item)) if is_url(item) else os.path.abspath(item))
        if key == "path" and isinstance(item, str | Path)
        else _make_absolute(item)
        for key, item in value.items()
    }
