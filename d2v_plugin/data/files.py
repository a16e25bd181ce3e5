"""Reading files, or byte ranges of uncompressed archives, from many threads."""

from __future__ import annotations

import os
import stat
import threading
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock

from d2v_plugin.core.remote import place
from d2v_plugin.core.store import is_url, scheme_of
from d2v_plugin.data.store_reading import MAX_BYTES, store_reader


@dataclass(frozen=True)
class Location:
    """Place of the bytes of a sample: a whole file, or a range of one."""

    path: str

    offset: int = 0
    """First byte of the range."""

    size: int | None = None
    """Length of the range in bytes; None = the whole file."""

    @property
    def is_remote(self) -> bool:
        """Whether it is on a store."""
        return "://" in self.path and is_url(self.path)

    @property
    def scheme(self) -> str:
        """What an address begins with, such as ``s3``."""
        return scheme_of(self.path)

    def __str__(self) -> str:
        return self.path if self.size is None else f"{self.path}:{self.offset}:{self.size}"


class _Descriptor:
    """An open file, closed when the last user lets go of it."""

    def __init__(self, path: str) -> None:
        self.number = _open(path)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class _Copy(_Descriptor):
    """A file in memory."""

    def __init__(self) -> None:
        self.number = os.memfd_create("range", os.MFD_CLOEXEC)


_open_archive = lru_cache(maxsize=256)(_Descriptor)
_opening = Lock()
_this_thread = threading.local()


def check_regular(path: str | os.PathLike[str]) -> None:
    """Refuse what is not read before it is opened: a pipe waits for ever, and some devices act when they are opened.

    :raises OSError: it does not exist, or is a folder, pipe, socket or device.
    """
    mode = place(path).stat().st_mode if is_url(path) else os.stat(path).st_mode  # type: ignore[arg-type]
    if not stat.S_ISREG(mode):
        kinds = ((stat.S_ISDIR, "folder"), (stat.S_ISFIFO, "pipe"), (stat.S_ISSOCK, "socket"))
        kind = next((name for is_kind, name in kinds if is_kind(mode)), "device")
        raise OSError(f"{path} is no file, but a {kind}.")


def read_bytes(location: Location) -> bytearray:
    """Read all bytes of a sample.

    :raises OSError: it is no regular file, cannot be read, or ends before the range does.
    """
    if location.is_remote:
        return bytearray(store_reader().read(location))
    if location.size is None:
        # Not cached: a loose file is read once per epoch.
        descriptor = _open(location.path)
        try:
            return _read_range(descriptor, 0, os.fstat(descriptor).st_size, location)
        finally:
            os.close(descriptor)

    with _opening:
        archive = _open_archive(location.path)

    return _read_range(archive.number, location.offset, location.size, location)


def copy_range(location: Location) -> int:
    """Copy a range of an archive to a file in memory, within the kernel, for libraries that read files only; or any object.

    :returns: the file's descriptor, at its beginning; each thread has one, which holds the range until the next call.
    :raises OSError: the archive cannot be read, or ends before the range does.
    """
    if not hasattr(_this_thread, "copy"):
        _this_thread.copy = _Copy()
    copy: int = _this_thread.copy.number
    if location.is_remote:
        data = store_reader().read(location)
        os.ftruncate(copy, len(data))
        os.pwrite(copy, data, 0)
        os.lseek(copy, 0, os.SEEK_SET)
        return copy
    assert location.size is not None
    with _opening:
        archive = _open_archive(location.path)
    _check_range(archive.number, location.offset, location.size, location)
    # The pages of the last range are used again.
    os.ftruncate(copy, location.size)
    os.lseek(copy, 0, os.SEEK_SET)
    done = 0
    while done < location.size:
        more = os.sendfile(copy, archive.number, location.offset + done, location.size - done)
        if not more:
            raise OSError(f"{location} ends after {done} of {location.size} bytes.")
        done += more
    os.lseek(copy, 0, os.SEEK_SET)

    return copy


def _open(path: str) -> int:
    """The descriptor of a regular file."""
    check_regular(path)
    # If a pipe has taken its place since, opening it does not wait.
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


def _check_range(descriptor: int, offset: int, size: int, location: Location) -> None:
    """Before memory is taken for what a manifest says."""
    available = os.fstat(descriptor).st_size - offset
    if size > min(available, MAX_BYTES):
        limit = f"more than the {MAX_BYTES:,} that are read" if size > MAX_BYTES else f"but the file ends after {available:,}"
        raise OSError(f"{location} has {size:,} bytes, {limit}.")


def _read_range(descriptor: int, offset: int, size: int, location: Location) -> bytearray:
    _check_range(descriptor, offset, size, location)
    data = bytearray(size)
    done = os.preadv(descriptor, [data], offset) if size else 0
    while done < size:
        # Linux reads at most 2 GiB at once, network file systems sometimes less.
        more = os.preadv(descriptor, [memoryview(data)[done:]], offset + done)
        if not more:
            raise OSError(f"{location} ends after {done} of {size} bytes.")
        done += more

    return data
