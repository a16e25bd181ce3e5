"""Sources of weights: a converted directory, one of our runs, a registered name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from fairseq2.assets import AssetCard, AssetStore
from fairseq2.device import CPU
from fairseq2.gang import create_fake_gangs
from fairseq2.model_checkpoint import CorruptModelCheckpointError, ModelCheckpointLoader, ModelCheckpointLoadOptions
from fairseq2.models import ModelFamily
from typing_extensions import override

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.core.plain_yaml import PlainYamlError, read_yaml
from d2v_plugin.core.remote import localized, place
from d2v_plugin.core.storage import check_directory, has_record
from d2v_plugin.core.store import is_url
from d2v_plugin.models.base import CRITERION_PREFIX, drop_criterion
from d2v_plugin.models.families import FAMILIES, AnyConfig, is_family
from d2v_plugin.weights.averaging import average, find_last
from d2v_plugin.weights.directory import (
    CONFIG_FILE,
    HEAD_FILE,
    STUDENT_FILE,
    TEACHER_FILE,
    is_model_directory,
    read_config,
    read_provenance_section,
    read_weights,
    structure_config,
)
from d2v_plugin.weights.download import download
from d2v_plugin.weights.library import library
from d2v_plugin.weights.named import convert_named, is_foreign
from d2v_plugin.weights.provenance import Provenance, read_provenance
from d2v_plugin.weights.run_folder import MODEL_FILE, PROVENANCE_FILE, find_checkpoints, find_step, named_step, split_average
from d2v_plugin.weights.state import TEACHER_PREFIX, State
from d2v_plugin.weights.torch_file import explain_corrupt

_FAMILIES: Final = " or ".join(f"`{family}`" for family in FAMILIES)

Weights = Literal["student", "teacher"]
"""The weights to take; the teacher's replace the student's where the teacher has them."""


@dataclass(frozen=True)
class Source(ABC):
    """A checkpoint that was found, not yet read."""

    path: Path
    """Where it is, for messages."""

    config: AnyConfig
    """Its model."""

    @abstractmethod
    def read(self, weights: Weights = "student") -> State:
        """Read the weights of the model.

        :raises CheckpointError: they cannot be read, or there is no teacher.
        """

    @abstractmethod
    def read_all(self) -> State:
        """Read everything that was trained, including what belongs to the criterion (``criterion.…``).

        :raises CheckpointError: it cannot be read, or is damaged.
        """


@dataclass(frozen=True)
class DirectorySource(Source):
    """A directory that ``fairseq2 recipe convert`` wrote."""

    @override
    def read(self, weights: Weights = "student") -> State:
        state = read_weights(self.path / STUDENT_FILE)
        if weights == "teacher":
            if not (self.path / TEACHER_FILE).exists():
                raise CheckpointError(f"{self.path} has no teacher (`{TEACHER_FILE}`).")
            state |= read_weights(self.path / TEACHER_FILE)
        if has_record(self.path):
            check_directory(self.path)

        return state

    @override
    def read_all(self) -> State:
        if not (self.path / HEAD_FILE).exists():
            return self.read()
        head = read_weights(self.path / HEAD_FILE)

        return self.read() | {f"{CRITERION_PREFIX}{key}": tensor for key, tensor in head.items()}


@dataclass(frozen=True)
class NativeSource(Source):
    """Weights as fairseq2 writes them: the ``model`` folder of a checkpoint, sharded or not, or a single file."""

    is_checked: bool = False
    """Whether its files have been compared with their record."""

    @override
    def read(self, weights: Weights = "student") -> State:
        state = self.read_all()
        student = drop_criterion(state)
        if weights == "teacher":
            teacher = {key.removeprefix(TEACHER_PREFIX): t for key, t in state.items() if key.startswith(TEACHER_PREFIX)}
            if not teacher:
                raise CheckpointError(f"{self.path} has no teacher.")
            student |= teacher

        return student

    @override
    def read_all(self) -> State:
        if not self.is_checked and has_record(self.path.parent):
            check_directory(self.path.parent, "model/*")
        # Whole tensors, whatever the number of processes now and when it was written.
        options = ModelCheckpointLoadOptions(gangs=create_fake_gangs(CPU), mmap=True, restrict=True)
        try:
            with localized(self.path) as path:  # what is mapped stays when the names of a local copy go
                return dict(library().resolve(ModelCheckpointLoader).lazy_load(path, {}, options))
        except CorruptModelCheckpointError as ex:
            raise CheckpointError(explain_corrupt(self.path, ex)) from ex
        except OSError as ex:
            raise CheckpointError(f"{self.path}: {ex.strerror or ex}.") from ex


@dataclass(frozen=True)
class AveragedSource(Source):
    """The mean of several checkpoints of a run; the teacher's weights are averaged as the student's are."""

    parts: Sequence[NativeSource]
    """The checkpoints, the last one first."""

    @override
    def read(self, weights: Weights = "student") -> State:
        return average((part.path, part.read(weights)) for part in self.parts)

    @override
    def read_all(self) -> State:
        return average((part.path, part.read_all()) for part in self.parts)


def find_source(path_or_name: str | Path) -> Source:
    """Find a checkpoint.

    :param path_or_name: a directory written by ``fairseq2 recipe convert``; the output directory of a run, its
        ``checkpoints`` (both mean the last one) or one of its ``step_N``; or the name of a registered model. The path of a run
        or a ``step_N`` may end in ``@average=5``: the mean of its last 5 checkpoints.
    :raises CheckpointError: there is no such thing.
    """
    path_or_name, count = split_average(path_or_name)
    if count > 1:
        return _find_average(path_or_name, count)
    path = place(path_or_name)
    if path.is_dir():
        return _find_in_directory(path)
    if path.is_file():
        raise CheckpointError(
            f"{path} is a file. Give the directory of a converted checkpoint or of a run; a fairseq checkpoint is converted by "
            f"`fairseq2 recipe convert fairseq {path} OUT`."
        )
    if isinstance(path_or_name, Path) or path.name != path_or_name:
        raise CheckpointError(f"{path} does not exist.")

    return _find_by_name(path_or_name)


def find_provenance(path: str | Path) -> Provenance | None:
    """The provenance of a checkpoint, given as for :func:`find_source`; None if nothing says it.

    :raises CheckpointError: what says it is damaged, or a registered model cannot be had.
    """
    path, _ = split_average(path)
    if isinstance(path, str) and not is_url(path) and not Path(path).exists() and Path(path).name == path:
        card = library().resolve(AssetStore).maybe_retrieve_card(path)
        path = path if card is None or not is_family(_family_of(card)) else _find_files(card)
    if is_model_directory(place(path)):
        return read_provenance_section(place(path))
    checkpoints = find_checkpoints(path)

    return None if checkpoints is None or not (checkpoints / PROVENANCE_FILE).is_file() else read_provenance(checkpoints)


def _find_average(path: str | Path, count: int) -> AveragedSource:
    step = find_step(path)
    if step is None:
        raise CheckpointError(f"{path} is no run, which has several checkpoints; there is no mean of {count}.")
    config = _read_run_config(step.parent / MODEL_FILE)

    return AveragedSource(step, config, [NativeSource(each / "model", config) for each in find_last(step, count)])


def _find_in_directory(path: Path) -> Source:
    if is_model_directory(path):
        return DirectorySource(path, read_config(path))

    step = find_step(path)
    if step is None:
        hint = f"fairseq2 recipe convert huggingface {path} OUT"
        hint = f" A folder of Hugging Face is converted by `{hint}`." if (path / CONFIG_FILE).is_file() else ""
        raise CheckpointError(
            f"{path} is neither a converted checkpoint ({CONFIG_FILE}) nor a run (checkpoints/{MODEL_FILE}).{hint}"
        )

    return NativeSource(step / "model", _read_run_config(step.parent / MODEL_FILE), is_checked=named_step(path) is None)


def _read_run_config(path: Path) -> AnyConfig:
    try:
        content: Any = read_yaml(path)
    except PlainYamlError as ex:
        raise CheckpointError(f"{path} {ex}.") from ex
    except OSError as ex:
        raise CheckpointError(f"{path} cannot be read: {ex}") from ex
    family: Any = content.get("model_family") if isinstance(content, dict) else None
    if not is_family(family):
        raise CheckpointError(f"{path} describes a model of the family `{family}`, not {_FAMILIES}.")

    return structure_config(family, content.get("model_config"), path)


def _find_by_name(name: str) -> Source:
    card = library().resolve(AssetStore).maybe_retrieve_card(name)
    if card is None:
        raise CheckpointError(f"`{name}` is neither a directory nor a registered model.")
    family = _family_of(card)
    if not is_family(family):
        raise CheckpointError(f"`{name}` is not a model of the family {_FAMILIES}.")

    path = _find_files(card)
    if path.is_dir() and is_model_directory(path):
        return DirectorySource(path, read_config(path))
    config = library().resolve(ModelFamily, key=family).get_model_config(card)
    assert isinstance(config, AnyConfig)

    return NativeSource(path, config)


def _family_of(card: AssetCard) -> str | None:
    field = card.maybe_get_field("model_family")
    return None if field is None else field.as_(str)


def _find_files(card: AssetCard) -> Path:
    """The file or the directory of a registered model; one of other programs is converted at its first use."""
    return convert_named(card) if is_foreign(card) else download(card, "checkpoint")
