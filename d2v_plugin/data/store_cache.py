"""Byte ranges of objects on stores, kept on the local disk up to a bound, and shared by all processes of this machine.

``D2V_CACHE`` names the folder (default: ``d2v_plugin`` in the user's cache), ``D2V_CACHE_GB`` its size in gigabytes (default: 10;
0 = none).
"""

from __future__ import annotations

import hashlib
import math
import os
import uuid
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Final

from fairseq2.recipe.error import RecipeError

from d2v_plugin.core.log import log

_DEFAULT_SIZE: Final = "10"


class RangeCache:
    """Files named by what they hold. A process that has written a sixteenth of the bound removes the oldest beyond it."""

    def __init__(self, folder: Path, limit: int) -> None:
        """:param limit: bytes; 0 = keep nothing."""
        self.folder = folder
        self.limit = limit
        self._written = limit // 16  # so that the first write looks at what others have left
        self._lock = Lock()

    def get(self, key: str, size: int) -> bytes | None:
        """Find data of so many bytes; None = they are not here, or not whole."""
        if not self.limit:
            return None
        try:
            data = self._path(key).read_bytes()
        except OSError:
            return None
        return data if len(data) == size else None

    def put(self, key: str, data: bytes) -> None:
        """Keep data; a disk that is full or gone costs no more than the next request."""
        if not self.limit or len(data) > self.limit // 16:
            return
        path = self._path(key)
        aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_bytes(data)
            aside.replace(path)
        except OSError as ex:
            log.warning("{}: nothing more is kept of what is read from stores: {}.", self.folder, ex.strerror or ex)
            self.limit = 0
            with suppress(OSError):
                aside.unlink(missing_ok=True)
            return
        with self._lock:
            self._written += len(data)
            is_due = self._written > self.limit // 16
            self._written = 0 if is_due else self._written
        if is_due:
            self._shrink()

    def _path(self, key: str) -> Path:
        name = hashlib.blake2b(key.encode("utf-8", errors="surrogateescape"), digest_size=20).hexdigest()
        return self.folder / name[:2] / name

    def _shrink(self) -> None:
        """Remove the oldest files until an eighth of the bound is free."""
        found = []
        for folder in self.folder.glob("??"):
            # Another process may remove the same.
            with suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    with suppress(OSError):
                        found.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
        rest = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if rest <= self.limit * 7 // 8:
                break
            with suppress(OSError):
                os.unlink(path)
            rest -= size


def open_cache() -> RangeCache:
    """The cache of this user.

    :raises RecipeError: ``D2V_CACHE_GB`` is no number of 0 or more.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = os.environ.get("D2V_CACHE") or os.path.join(base, "d2v_plugin")
    text = os.environ.get("D2V_CACHE_GB") or _DEFAULT_SIZE
    try:
        size = float(text)
    except ValueError:
        size = -1.0
    if not (math.isfinite(size) and size >= 0.0):
        raise RecipeError(f"`D2V_CACHE_GB` is `{text:.30}`, but must be a number of gigabytes, such as 10, or 0 for no cache.")
    return RangeCache(Path(folder), int(size * 1e9))
