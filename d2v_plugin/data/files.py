"""Reading files, or byte ranges of uncompressed archives, from many threads."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock


@dataclass(frozen=True)
class Location:
    """Where the bytes of a sample lie: a whole file, or a range of one."""

    path: str

    offset: int = 0
    """First byte of the range."""

    size: int | None = None
    """Length of the range in bytes; None = the whole file."""

    def __str__(self) -> str:
        return self.path if self.size is None else f"{self.path}:{self.offset}:{self.size}"


class _Descriptor:
    """An open file, closed when the last user lets go of it."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


_open_archive = lru_cache(maxsize=256)(_Descriptor)
_opening = Lock()


def read_bytes(location: Location) -> bytes:
    """Read all bytes of a sample.

    :raises OSError: the file cannot be read, or ends before the range does.
    """
    if location.size is None:
        # Not cached: a loose file is read once per epoch.
        descriptor = os.open(location.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _read_range(descriptor, 0, os.fstat(descriptor).st_size, location)
        finally:
            os.close(descriptor)

    with _opening:
        archive = _open_archive(location.path)

    return _read_range(archive.number, location.offset, location.size, location)


def _read_range(descriptor: int, offset: int, size: int, location: Location) -> bytes:
    data = os.pread(descriptor, size, offset)
    while len(data) < size:
        # Linux reads at most 2 GiB at once, network file systems sometimes less.
        more = os.pread(descriptor, size - len(data), offset + len(data))
        if not more:
            raise OSError(f"{location} ends after {len(data)} of {size} bytes.")
        data += more

    return data
