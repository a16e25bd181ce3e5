"""Complete or not: a directory of files, and a record of their sizes and hashes that is written last.

A checkpoint is written aside (``step_9.tmp``), then its record, and then the directory gets its name. So whatever carries the
name was complete once; the record finds out whether it still is, and says which file is not.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, Final

from d2v_plugin.core.errors import CheckpointError

RECORD_FILE: Final = "complete.json"
FORMAT_VERSION: Final = 1

_MAX_RECORD_SIZE: Final = 1 << 26
_CHUNK: Final = 1 << 22


@dataclass(frozen=True)
class FileRecord:
    """What a file was when it had been written."""

    size: int
    """Bytes."""

    sha256: str
    """Of its contents; processors compute it at 1 to 2 GiB/s, faster than most disks write."""


@dataclass(frozen=True)
class Record:
    """What ``complete.json`` says."""

    files: Mapping[str, FileRecord]
    """By path relative to the directory, with slashes."""

    info: Mapping[str, Any]
    """Whatever the writer wants to know when it reads the directory again."""


def write_record(folder: Path, record: Record) -> None:
    """Write ``complete.json``, at once and to the disk."""
    files = {name: asdict(record.files[name]) for name in sorted(record.files)}
    content = {"format_version": FORMAT_VERSION, **record.info, "files": files}
    content["sha256"] = _hash_content(content)
    aside = folder / f"{RECORD_FILE}.tmp"
    with aside.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(folder / RECORD_FILE)
    sync_directory(folder)


def read_record(folder: Path) -> Record:
    """
    :raises CheckpointError: there is none, or it is damaged.
    """
    path = folder / RECORD_FILE
    try:
        if path.stat().st_size > _MAX_RECORD_SIZE:
            raise CheckpointError(f"{path} is damaged: it is too large to be a record.")
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("sha256") != _hash_content(content):
            raise ValueError("its own hash is wrong")
        version, files = content.pop("format_version"), content.pop("files")
        records = {name: FileRecord(int(entry["size"]), str(entry["sha256"])) for name, entry in files.items()}
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not complete: it has no {RECORD_FILE}.") from None
    except OSError as ex:
        raise CheckpointError(f"{path}: {ex.strerror or ex}.") from ex
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as ex:
        raise CheckpointError(f"{path} is damaged: it is no record of sizes and hashes.") from ex
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{path} has format version {version}; this package reads version {FORMAT_VERSION}.")
    for name in records:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise CheckpointError(f"{path} is damaged: `{name}` is not inside of its directory.")

    return Record(records, content)


def check_files(folder: Path, record: Record, names: Iterable[str] | None = None) -> None:
    """Compare files with their record.

    :param names: which files; None = all.
    :raises CheckpointError: one is missing, has another size, or other contents; names the first.
    """
    names = sorted(record.files) if names is None else list(names)
    for name in names:  # sizes first: they cost nothing
        _check_size(folder / name, record.files[name])
    for name in names:
        path = folder / name
        try:
            found = hash_file(path)
        except OSError as ex:
            raise CheckpointError(f"{path}: {ex.strerror or ex}.") from ex
        if found != record.files[name].sha256:
            raise CheckpointError(f"{path} is damaged: its hash is not the one in {RECORD_FILE}.")


def check_if_recorded(folder: Path, pattern: str) -> None:
    """Compare the files of some names with their record, if the directory has one.

    :raises CheckpointError: as :func:`check_files`.
    """
    if (folder / RECORD_FILE).is_file():
        record = read_record(folder)
        check_files(folder, record, [name for name in record.files if fnmatch(name, pattern)])


def _check_size(path: Path, expected: FileRecord) -> None:
    try:
        size = path.stat().st_size
    except OSError:
        raise CheckpointError(f"{path} is missing.") from None
    if size != expected.size:
        kind = "truncated" if size < expected.size else "damaged"
        raise CheckpointError(f"{path} is {kind}: it has {size:,} bytes instead of {expected.size:,}.")


def describe_file(path: Path) -> FileRecord:
    """The record of a file as it is now."""
    return FileRecord(path.stat().st_size, hash_file(path))


def _hash_content(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)

    return found.hexdigest()


def sync_directory(folder: Path) -> None:
    """Make the names in a directory survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
