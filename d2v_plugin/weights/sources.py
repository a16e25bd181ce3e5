"""Sources of weights: a converted directory, one of our runs, a registered name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from fairseq2.assets import AssetDownloadManager, AssetStore
from fairseq2.device import CPU
from fairseq2.gang import create_fake_gangs
from fairseq2.model_checkpoint import CorruptModelCheckpointError, ModelCheckpointLoader, ModelCheckpointLoadOptions
from fairseq2.models import ModelFamily
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver
from typing_extensions import override

from d2v_plugin.core.errors import CheckpointError, root_cause
from d2v_plugin.core.fairseq2_private import current_resolver, register_library
from d2v_plugin.core.plain_yaml import PlainYamlError, read_yaml
from d2v_plugin.core.storage import check_directory, has_record
from d2v_plugin.models.base import CRITERION_PREFIX, drop_criterion
from d2v_plugin.models.families import FAMILIES, AnyConfig, is_family, is_registered, register_models
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
from d2v_plugin.weights.provenance import Provenance, read_provenance
from d2v_plugin.weights.run_folder import MODEL_FILE, PROVENANCE_FILE, find_checkpoints, find_step, named_step
from d2v_plugin.weights.state import TEACHER_PREFIX, State
from d2v_plugin.weights.torch_file import explain_unreadable

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
    """A directory that ``tools/convert_checkpoint.py`` wrote."""

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
            return dict(library().resolve(ModelCheckpointLoader).lazy_load(self.path, {}, options))
        except CorruptModelCheckpointError as ex:
            raise CheckpointError(_explain_corrupt(self.path, ex)) from ex
        except OSError as ex:
            raise CheckpointError(f"{self.path}: {ex.strerror or ex}.") from ex


def find_source(path_or_name: str | Path) -> Source:
    """Find a checkpoint.

    :param path_or_name: a directory written by ``tools/convert_checkpoint.py``; the output directory of a run, its
        ``checkpoints`` (both mean the last one) or one of its ``step_N``; or the name of a registered model.
    :raises CheckpointError: there is no such thing.
    """
    path = Path(path_or_name)
    if path.is_dir():
        return _find_in_directory(path)
    if path.is_file():
        raise CheckpointError(
            f"{path} is a file. Give the directory of a converted checkpoint or of a run; a fairseq checkpoint is converted by "
            f"`python tools/convert_checkpoint.py fairseq {path} OUT`."
        )
    if isinstance(path_or_name, Path) or path.name != path_or_name:
        raise CheckpointError(f"{path} does not exist.")

    return _find_by_name(path_or_name)


def find_provenance(path: str | Path) -> Provenance | None:
    """The provenance of a checkpoint, given as for :func:`find_source`; None if nothing says it, as for registered names.

    :raises CheckpointError: what says it is damaged.
    """
    if is_model_directory(Path(path)):
        return read_provenance_section(Path(path))
    checkpoints = find_checkpoints(path)

    return None if checkpoints is None or not (checkpoints / PROVENANCE_FILE).is_file() else read_provenance(checkpoints)


def _find_in_directory(path: Path) -> Source:
    if is_model_directory(path):
        return DirectorySource(path, read_config(path))

    step = find_step(path)
    if step is None:
        raise CheckpointError(f"{path} is neither a converted checkpoint ({CONFIG_FILE}) nor a run (checkpoints/{MODEL_FILE}).")

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
    resolver = library()
    card = resolver.resolve(AssetStore).maybe_retrieve_card(name)
    if card is None:
        raise CheckpointError(f"`{name}` is neither a directory nor a registered model.")
    field = card.maybe_get_field("model_family")
    family = None if field is None else field.as_(str)
    if not is_family(family):
        raise CheckpointError(f"`{name}` is not a model of the family {_FAMILIES}.")

    uri = card.field("checkpoint").as_uri()
    path = uri.to_path() if uri.scheme == "file" else resolver.resolve(AssetDownloadManager).download_model(uri)
    if path.is_dir() and is_model_directory(path):
        return DirectorySource(path, read_config(path))
    config = resolver.resolve(ModelFamily, key=family).get_model_config(card)
    assert isinstance(config, AnyConfig)

    return NativeSource(path, config)


def library() -> DependencyResolver:
    """fairseq2's objects: those of the process if it has initialised fairseq2, otherwise our own, which change nothing global."""
    return current_resolver() or _own_library()


@cache
def _own_library() -> DependencyContainer:
    container = DependencyContainer()
    register_library(container, no_progress=True)
    if not is_registered(container):
        register_models(container)

    return container


def _explain_corrupt(path: Path, ex: CorruptModelCheckpointError) -> str:
    """fairseq2's message names the file; the reason is in what caused it."""
    file = getattr(ex.__cause__, "file", None)
    return f"{file}: {explain_unreadable(file, root_cause(ex))}" if isinstance(file, Path) else f"{path}: {ex}"
