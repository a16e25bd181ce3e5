"""Findings of the last run, so that an update reads only what is new or has changed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from d2v_plugin.core.remote import RemotePath
from d2v_plugin.core.storage import write_atomically
from d2v_plugin.data.files import check_regular

_FILE: Final = "known.txt"

_VERSION: Final = 1
"""To be raised when something else is found in the same files."""


class InspectionCache:
    """Facts about files, each as long as the file keeps its path, its size and the time of its last change.

    They lie beside the manifests, with a checksum over them, the version and the settings they depend on: when one is not what
    it was, nothing is known. Paths are digests there, since manifests of shards do not name the user's folders either. Only
    what this run remembers is written for the next one. Safe to use from many threads.
    """

    def __init__(self, folder: Path, settings: Mapping[str, object], *, reread: bool = False) -> None:
        """
        :param settings: all that decides what is found in a file.
        :param reread: know nothing.
        """
        self._path = folder / _FILE
        self._settings = json.dumps([_VERSION, settings], sort_keys=True)
        self._old = {} if reread else self._load()
        self._new: dict[str, str] = {}

    def find(self, path: object, stamp: str) -> Any:
        """Facts about a file; None = nothing is known, or its stamp was another."""
        entry = self._old.get(_digest(str(path)))
        return None if entry is None or not entry.startswith(stamp) else json.loads(entry.removeprefix(stamp))

    def remember(self, path: object, stamp: str, facts: object) -> None:
        """:param facts: anything JSON can hold but None."""
        self._new[_digest(str(path))] = stamp + json.dumps(facts)

    def count_kept(self) -> int:
        """Count the files that are as they were in the last run."""
        return sum(self._old.get(key) == entry for key, entry in self._new.items())

    def digest(self, files: Iterable[tuple[str, object]]) -> str:
        """A digest of names and files, in this order, with the files' stamps and facts; all must have been remembered."""
        keys = [(name, _digest(str(path))) for name, path in files]
        return _digest("\n".join(f"{name}\t{key}\t{self._new[key]}" for name, key in keys))

    def save(self) -> None:
        entries = "".join(f"{key}\t{self._new[key]}\n" for key in sorted(self._new))
        write_atomically(self._path, f"{_digest(self._settings + entries)}\n{entries}")

    def _load(self) -> dict[str, str]:
        try:
            check_regular(self._path)
            seal, _, entries = self._path.read_text(encoding="utf-8").partition("\n")
        except (OSError, UnicodeDecodeError):
            return {}
        if seal != _digest(self._settings + entries):
            return {}
        return dict(line.split("\t", 1) for line in entries.removesuffix("\n").split("\n") if line)


def read_stamp(path: Path) -> str:
    """Size and time of the last change. To be asked for before reading a file: the next run then notices what changed meanwhile.

    :raises OSError: there is no such file.
    """
    status = os.stat(path) if not isinstance(path, RemotePath) else path.stat()
    return f"{status.st_size}\t{status.st_mtime_ns}\t"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", errors="surrogateescape"), digest_size=16).hexdigest()
