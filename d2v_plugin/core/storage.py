"""Files and directories that are there whole or not at all, and records of the sizes and hashes of a directory's files.

A checkpoint is written aside (``step_9.tmp``), then its record, and then the directory gets its name. So whatever carries the
name was complete once; the record finds out whether it still is, and says which file is not.

A store renames nothing, but an object appears there whole. A checkpoint has its name from the first then, and is one as soon as
its record, which is written last and removed first, is there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import Any, Final, TextIO

from d2v_plugin.core.errors import CheckpointError, NewerFormatError
from d2v_plugin.core.remote import RemotePath, localized

RECORD_FILE: Final = "complete.json"
FORMAT_VERSION: Final = 1

_MAX_RECORD_SIZE: Final = 1 << 26
_CHUNK: Final = 1 << 22


@dataclass(frozen=True)
class FileRecord:
    """Size and contents of a file when it had been written."""

    size: int
    """Bytes."""

    sha256: str
    """Of its contents; processors compute it at 1 to 2 GiB/s, faster than most disks write."""


@dataclass(frozen=True)
class Record:
    """Contents of ``complete.json``."""

    files: Mapping[str, FileRecord]
    """By path relative to the directory, with slashes."""

    info: Mapping[str, Any]
    """Whatever the writer wants to know when it reads the directory again."""


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write a file, or replace it: whoever opens it, even after a loss of power, finds the old contents or the new ones.

    Missing folders are made. Several processes may write the same file at once; the last one wins.

    :param data: text is written as UTF-8; bytes of names that are not valid UTF-8 (``surrogateescape``) are written as they are.
    :raises OSError: it cannot be written; the old contents are still there.
    """
    content = data.encode("utf-8", errors="surrogateescape") if isinstance(data, str) else data
    if isinstance(path, RemotePath):
        path.write_bytes(content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        aside.write_bytes(content)
        put_in_place(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def open_atomically(path: Path) -> Iterator[TextIO]:
    """Open a text file to write; it gets its name, and replaces what had it, at the end of the block, unless that fails.

    As for :func:`write_atomically` folders are made, several processes may write, and the text is UTF-8.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with aside.open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            yield file
        put_in_place(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def put_in_place(aside: Path, target: Path) -> None:
    """Give a finished file or directory its name at once, on the disk; a directory that had the name before is removed.

    On a store a checkpoint has its name already.
    """
    if isinstance(target, RemotePath):
        assert aside == target
        return
    for path in (aside, *aside.rglob("*")):
        _sync(path)
    replaced = _retire(target) if aside.is_dir() and target.exists() else None
    aside.replace(target)
    _sync(target.parent)
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a file or a directory, if it is there; what cannot be removed stays."""
    if isinstance(path, RemotePath):
        with suppress(OSError):
            remove_directory(path)
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def find_free_name(path: Path) -> Path:
    """The path itself or, while something has that name, the next one of ``path.2``, ``path.3``, …"""
    names = chain([path], (path.with_name(f"{path.name}.{number}") for number in count(2)))
    return next(name for name in names if not os.path.lexists(name))


def remove_directory(folder: Path) -> None:
    """Remove a directory, under another name or its record first: what is half removed is taken for nothing."""
    if isinstance(folder, RemotePath):
        (folder / RECORD_FILE).unlink(missing_ok=True)
        folder.remove_tree()
    else:
        shutil.rmtree(_retire(folder))


def _retire(folder: Path) -> Path:
    gone = folder.with_name(f"{folder.name}.old.tmp")
    remove(gone)
    return folder.rename(gone)


def _sync(path: Path) -> None:
    """Make the contents of a file, or the names in a directory, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_record(folder: Path, record: Record) -> None:
    """Write ``complete.json``."""
    files = {name: asdict(record.files[name]) for name in sorted(record.files)}
    content = {"format_version": FORMAT_VERSION, **record.info, "files": files}
    content["sha256"] = _hash_content(content)
    write_atomically(folder / RECORD_FILE, json.dumps(content, indent=1))


def read_record(folder: Path) -> Record:
    """Read ``complete.json``.

    :raises CheckpointError: there is none, or it is damaged.
    :raises NewerFormatError: a newer version of this package wrote it.
    """
    path = folder / RECORD_FILE
    try:
        if path.stat().st_size > _MAX_RECORD_SIZE:
            raise CheckpointError(f"{path} is damaged: it is too large to be a record.")
        content = json.loads(path.read_text(encoding="utf-8"))
        # First: of a newer format nothing else is known, not even how it is hashed.
        version = content["format_version"]
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise NewerFormatError(
                f"{path} has format version {version}; this package reads version {FORMAT_VERSION}. Use the newer version of the "
                "package that wrote it."
            )
        if content.pop("sha256") != _hash_content(content):
            raise ValueError("its own hash is wrong")
        version, files = content.pop("format_version"), content.pop("files")
        records = {name: FileRecord(int(entry["size"]), str(entry["sha256"])) for name, entry in files.items()}
    except FileNotFoundError:
        raise CheckpointError(f"{folder} is not complete: it has no {RECORD_FILE}.") from None
    except OSError as ex:
        raise CheckpointError(f"{path}: {ex.strerror or ex}.") from ex
    except NewerFormatError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as ex:
        raise CheckpointError(f"{path} is damaged: it is no record of sizes and hashes.") from ex
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{path} has format version {version}; this package reads version {FORMAT_VERSION}.")
    for name in records:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise CheckpointError(f"{path} is damaged: `{name}` is not inside of its directory.")

    return Record(records, content)


def has_record(folder: Path) -> bool:
    """Tell whether a directory was complete once."""
    return (folder / RECORD_FILE).is_file()


def check_directory(folder: Path, contents: str = "*") -> Record:
    """Check that a directory is complete: all files of its record are there, with their sizes and, of some, their contents.

    :param contents: pattern of the names of files that are going to be read.
    :returns: its record.
    :raises CheckpointError: there is no record, or as for :func:`check_files`.
    """
    record = read_record(folder)
    check_files(folder, record, [name for name in record.files if fnmatch(name, contents)])
    return record


def check_files(folder: Path, record: Record, contents: Iterable[str]) -> None:
    """Compare files with their record: the sizes of all, which cost nothing, and the contents of some.

    :param contents: names of the latter.
    :raises CheckpointError: one is missing, has another size, or other contents; names the first.
    """
    for name in sorted(record.files):
        _check_size(folder / name, record.files[name])
    for name in sorted(contents):
        path = folder / name
        try:
            found = hash_file(path)
        except OSError as ex:
            raise CheckpointError(f"{path}: {ex.strerror or ex}.") from ex
        if found != record.files[name].sha256:
            raise CheckpointError(f"{path} is damaged: its hash is not the one in {RECORD_FILE}.")


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
    with localized(path) as local, local.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()
