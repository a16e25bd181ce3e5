"""Our format for models at rest: a directory with safetensors and a readable ``config.json``."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fairseq2.utils.structured import StandardValueConverter, StructureError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from d2v_plugin.core.errors import CheckpointError, causes
from d2v_plugin.core.remote import localized
from d2v_plugin.core.storage import FileRecord, Record, describe_file, put_in_place, write_record
from d2v_plugin.data.files import check_regular
from d2v_plugin.models.families import FAMILIES, AnyConfig, family_of, is_family
from d2v_plugin.weights.provenance import Provenance, structure_provenance, unstructure_provenance
from d2v_plugin.weights.state import State
from d2v_plugin.weights.torch_file import POINTER, is_pointer

FORMAT: Final = "d2v_plugin"
FORMAT_VERSION: Final = 1

CONFIG_FILE: Final = "config.json"
STUDENT_FILE: Final = "model.safetensors"
TEACHER_FILE: Final = "teacher.safetensors"
HEAD_FILE: Final = "head.safetensors"


@dataclass(kw_only=True)
class ModelDirectory:
    """Contents of such a directory."""

    config: AnyConfig
    """The model."""

    student: State
    """``model.safetensors``: all weights of the model."""

    teacher: State | None = None
    """``teacher.safetensors``: the averaged weights, under the student's names; a part of the model."""

    head: State | None = None
    """``head.safetensors``: what fine-tuning put on top: the parameters of the criterion that ``provenance`` names, or, without
    a provenance, under the names of their origin."""

    provenance: Provenance | None = None
    """The section ``provenance`` of ``config.json``: how a fine-tuned model reads its inputs, what its head is and predicts."""

    files: Sequence[Path] = ()
    """Copied: what inputs are read with, and labels are spelled in, under the names they have beside manifests."""

    info: Mapping[str, Any] = field(default_factory=dict)
    """Further sections of ``config.json``; read by people, not by :func:`read_config`."""


def write_directory(out: Path, content: ModelDirectory, *, force: bool = False) -> list[Path]:
    """Write everything aside, then put it in place at once.

    :param force: replace another directory of this kind.
    :returns: the files written.
    :raises CheckpointError: there is something already.
    """
    replaced = out.exists() and (not out.is_dir() or any(out.iterdir()))
    if replaced and not force:
        raise CheckpointError(f"{out} exists already; choose another place, or replace it with --force.")
    if replaced and not is_model_directory(out):
        raise CheckpointError(f"{out} is not a converted checkpoint; --force replaces nothing else.")

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as aside:
        new = Path(aside, "new")
        new.mkdir()
        _write_files(new, content)
        put_in_place(new, out)

    return sorted(out.iterdir())


def _write_files(folder: Path, content: ModelDirectory) -> None:
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "family": family_of(content.config),
        **content.info,
        **({} if content.provenance is None else {"provenance": unstructure_provenance(content.provenance)}),
        "model": StandardValueConverter().unstructure(content.config),
    }
    config_file = folder / CONFIG_FILE
    config_file.write_text(json.dumps(config, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")

    weights = {STUDENT_FILE: content.student, TEACHER_FILE: content.teacher, HEAD_FILE: content.head}
    records: dict[str, FileRecord] = {}
    for name, state in weights.items():
        if state:
            file = folder / name
            save_file({key: tensor.contiguous() for key, tensor in state.items()}, file, metadata={"format": "pt"})
            # safetensors lets nobody else read it.
            file.chmod(config_file.stat().st_mode)
            records[name] = describe_file(file)
    for original in content.files:
        records[original.name] = describe_file(Path(shutil.copy(original, folder)))
    # Not of the configuration, which people may edit.
    write_record(folder, Record(records, {}))


def is_model_directory(folder: Path) -> bool:
    """Tell by ``config.json`` whether a directory is one of ours."""
    try:
        return bool(_read_json(folder / CONFIG_FILE).get("format") == FORMAT)
    except CheckpointError:
        return False


def read_config(folder: Path) -> AnyConfig:
    """Read the configuration of a model.

    :raises CheckpointError: ``config.json`` cannot be read, or describes something else.
    """
    path = folder / CONFIG_FILE
    content = _read_json(path)
    if content.get("format") != FORMAT or not is_family(content.get("family")):
        raise CheckpointError(f"{path} does not describe a data2vec model of this package.")
    if content.get("format_version") != FORMAT_VERSION:
        version = content.get("format_version")
        raise CheckpointError(f"{path} has format version {version}; this package reads version {FORMAT_VERSION}.")

    return structure_config(content["family"], content.get("model"), path)


def read_provenance_section(folder: Path) -> Provenance | None:
    """Read how a model was fine-tuned; None = it was not, or nothing is known about it.

    :raises CheckpointError: as for :func:`read_config`.
    """
    path = folder / CONFIG_FILE
    content = _read_json(path).get("provenance")

    return None if content is None else structure_provenance(content, path)


def structure_config(family: str, content: object, path: Path) -> AnyConfig:
    """Make a configuration of its fields.

    :param family: one of :data:`FAMILIES`.
    :param content: the fields as plain data.
    :param path: where they stand, for the message.
    :raises CheckpointError: unknown keys, or values of the wrong type.
    """
    try:
        config = StandardValueConverter().structure(content, FAMILIES[family].config_kls)
    except (StructureError, ValueError) as ex:
        reasons = " ".join(str(cause) for cause in causes(ex))
        raise CheckpointError(f"{path}: the configuration of the model is not valid. {reasons}") from ex
    assert isinstance(config, AnyConfig)
    return config


def read_weights(path: Path) -> State:
    """Read a safetensors file from anywhere; sizes in its header are checked against the file before memory is taken.

    :raises CheckpointError: the file cannot be read, or is damaged.
    """
    try:
        check_regular(path)
        with localized(path) as file:
            return load_file(file)
    except OSError as ex:
        raise CheckpointError(f"{path}: {(ex.strerror or str(ex)).rstrip('.')}.") from ex
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError) as ex:
        reason = POINTER if is_pointer(path) else f"not a safetensors file, or a damaged one: {ex}."
        raise CheckpointError(f"{path}: {reason}") from ex


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as ex:
        raise CheckpointError(f"{path}: {ex.strerror or ex}.") from ex
    except (ValueError, RecursionError) as ex:
        raise CheckpointError(f"{path}: {POINTER}" if is_pointer(path) else f"{path} is not valid JSON: {ex}.") from ex
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold an object.")

    return content
