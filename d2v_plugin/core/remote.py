"""Places on object stores and web servers: paths whose files fsspec reads and writes.

fairseq2 passes every place on as a :class:`~pathlib.Path`, which makes ``s3:/bucket/key`` of ``s3://bucket/key``. :func:`place`
turns both spellings into a :class:`RemotePath`, a path like any other except that its methods ask the store. What takes local
files only, such as a decoder in C, asks for the name of the file, and is refused there, in one line.

What cannot be answered is an :class:`OSError` that names the place; see :mod:`d2v_plugin.core.store`.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PosixPath
from typing import IO, Any, Final, TypeVar

from typing_extensions import Self, override

from d2v_plugin.core.secrets import hide_in
from d2v_plugin.core.store import READ_ONLY, ask, is_url, scheme_of

T = TypeVar("T")

_BUFFER: Final = 1 << 22

_VERSIONS: Final = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "mtime", "updated", "created")
"""What stores tell of an object that changes with its contents."""

_BUCKETS: Final = ("s3", "s3a", "gs", "gcs", "oss", "oci", "abfs", "az")
"""Stores on which somebody has to make a bucket first; fairseq2 would make one in silence."""


def place(path: str | Path) -> Path:
    """The path of a file or a folder, wherever it is; a local one stays what it is."""
    if isinstance(path, str):
        path = Path(path)
    return RemotePath(path) if is_url(path) else path


class RemotePath(PosixPath):
    """A path on a store. Folders are there as long as something is in them."""

    def __str__(self) -> str:
        scheme, _, rest = super().__str__().partition(":/")
        return f"{scheme}://{rest.lstrip('/')}"

    def __fspath__(self) -> str:
        raise OSError(errno.EREMOTE, "only a local file or folder can be used here; copy it first", hide_in(str(self)))

    def _ask(self, request: Callable[[Any, str], T], *, writes: bool = False) -> T:
        return ask(str(self), request, writes=writes)

    def _tell(self, request: Callable[[Any, str], object]) -> bool:
        try:
            return bool(self._ask(request))
        except FileNotFoundError:  # not even the bucket
            return False

    # What is the same for every name

    def is_absolute(self) -> bool:
        return True

    def absolute(self) -> Self:
        return self

    def resolve(self, strict: bool = False) -> Self:
        return self

    def expanduser(self) -> Self:
        return self

    def is_symlink(self) -> bool:
        return False

    @property
    def scheme(self) -> str:
        """What the address begins with, such as ``s3``."""
        return scheme_of(str(self))

    def check_writable(self) -> None:
        """
        :raises OSError: nothing can be written here: it is on a web server, or there is no such bucket.
        """
        if self.scheme in READ_ONLY:
            self._ask(lambda store, address: None, writes=True)
        bucket = type(self)(*self.parts[:2])
        if self.scheme in _BUCKETS and not bucket.exists():
            raise FileNotFoundError(errno.ENOENT, "no such bucket", str(bucket))

    # What is there

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Size and, in ``st_mtime_ns``, a number that changes with the contents, if the store tells any such thing."""
        info = self._ask(lambda store, address: store.info(address))
        kind = stat.S_IFDIR if info.get("type") == "directory" else stat.S_IFREG
        told = [info.get(key) for key in _VERSIONS]
        version = int.from_bytes(hashlib.sha256(repr(told).encode()).digest()[:7], "big")
        size = int(info.get("size") or 0)
        return os.stat_result((kind | 0o644, 0, 0, 1, 0, 0, size, 0, 0, 0, 0.0, 0.0, 0.0, 0, version, 0))

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        return self._tell(lambda store, address: store.exists(address))

    def is_file(self) -> bool:
        return self._tell(lambda store, address: store.isfile(address))

    def is_dir(self) -> bool:
        return self._tell(lambda store, address: store.isdir(address))

    def iterdir(self) -> Generator[Self, None, None]:
        names = self._ask(lambda store, address: store.ls(address, detail=False))
        own = str(self).rpartition("/")[2]
        for name in sorted({str(name).rstrip("/").rpartition("/")[2] for name in names} - {"", own if len(names) == 1 else ""}):
            yield self / name

    def glob(self, pattern: str) -> Iterator[Self]:  # type: ignore[override]
        """What lies right below and has such a name; nothing if there is no such folder."""
        try:
            yield from (path for path in self.iterdir() if fnmatch(path.name, pattern))
        except FileNotFoundError:
            return

    def find_files(self) -> dict[str, int]:
        """The size of every file below, by its path from here, sorted."""
        found = self._ask(lambda store, address: store.find(address, detail=True))
        base = self._ask(lambda store, address: str(store._strip_protocol(address))).rstrip("/") + "/"
        names = {str(name): int(info.get("size") or 0) for name, info in found.items()}
        return {
            name.removeprefix(base): names[name] for name in sorted(names) if name.startswith(base) and not name.endswith("/")
        }

    # Reading and writing

    def read_range(self, start: int, stop: int) -> bytes:
        """Read bytes [start, stop).

        :raises OSError: the object ends before, or as always.
        """

        def request(store: Any, address: str) -> bytes:
            data: bytes = store.cat_file(address, start=start, end=stop)
            if len(data) != stop - start and (stop <= (size := self.stat().st_size) or len(data) != max(0, size - start)):
                raise ConnectionError(f"{len(data):,} bytes came instead of {stop - start:,}")
            return data

        data = self._ask(request)
        if len(data) < stop - start:
            raise OSError(
                errno.ENODATA, f"it ends after {start + len(data):,} bytes, but {stop:,} are needed", hide_in(str(self))
            )
        return data

    def read_bytes(self) -> bytes:
        size = self.stat().st_size
        return self.read_range(0, size) if size else b""

    def read_text(self, encoding: str | None = None, errors: str | None = None, newline: str | None = None) -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def write_bytes(self, data: Any) -> int:
        content = bytes(data)
        self._ask(lambda store, address: store.pipe_file(address, content), writes=True)
        return len(content)

    def write_text(self, data: str, encoding: str | None = None, errors: str | None = None, newline: str | None = None) -> int:
        return self.write_bytes(data.encode(encoding or "utf-8", errors or "strict"))

    def open(self, mode: str = "r", *args: Any, **kwargs: Any) -> IO[Any]:  # type: ignore[override]
        """Open the file to read it; it is written whole, by :meth:`write_bytes` or :func:`written`."""
        if mode not in ("r", "rb"):
            self.__fspath__()
        file = io.BufferedReader(_ObjectFile(self), _BUFFER)
        return file if mode == "rb" else io.TextIOWrapper(file, kwargs.get("encoding") or "utf-8")

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        pass

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self._ask(lambda store, address: store.rm_file(address), writes=True)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove_tree(self) -> None:
        """Remove all files below."""
        for name in self.find_files():
            (self / name).unlink(missing_ok=True)

    def rename(self, target: str | os.PathLike[str]) -> Self:
        """Copy a file, or all below a folder, to another name of the same store, then remove it here."""
        new = type(self)(target)
        names = [""] if self.is_file() else list(self.find_files())

        def copy(name: str) -> None:
            (self / name)._ask(lambda store, address: store.cp_file(address, str(new / name)), writes=True)

        for name in names:
            copy(name)
        for name in names:
            (self / name).unlink(missing_ok=True)
        return new

    def upload(self, file: Path) -> None:
        """Write the contents of a local file."""

        def request(store: Any, address: str) -> None:
            before = file.stat().st_size
            store.put_file(str(file), address)
            # A log may have grown meanwhile.
            if not before <= store.info(address)["size"] <= file.stat().st_size:
                raise ConnectionError("what was written is not whole")

        self._ask(request, writes=True)

    def download(self, file: Path) -> None:
        """Copy the object into a local file."""

        def request(store: Any, address: str) -> None:
            store.get_file(address, str(file))
            if store.info(address)["size"] != file.stat().st_size:
                raise ConnectionError("what was read is not whole")

        file.parent.mkdir(parents=True, exist_ok=True)
        self._ask(request)


class _ObjectFile(io.RawIOBase):
    """An object as a file, read by ranges."""

    def __init__(self, path: RemotePath) -> None:
        self._path = path
        self._size = path.stat().st_size
        self._at = 0

    @override
    def readable(self) -> bool:
        return True

    @override
    def seekable(self) -> bool:
        return True

    @override
    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    @override
    def tell(self) -> int:
        return self._at

    @override
    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        stop = min(self._at + len(buffer), self._size)
        if stop <= self._at:
            return 0
        data = self._path.read_range(self._at, stop)
        buffer[: len(data)] = data
        self._at = stop
        return len(data)


@contextmanager
def localized(path: Path) -> Iterator[Path]:
    """A local copy of a file or a folder while the block lasts; a local one itself."""
    if not isinstance(path, RemotePath):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="d2v_") as folder:
        copy = Path(folder, path.name)
        for name in [""] if path.is_file() else path.find_files():
            (path / name).download(copy / name)
        yield copy


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """The place to write a file to: on a store it gets its contents, and its name, at the end of the block, unless that fails."""
    if not isinstance(path, RemotePath):
        path.parent.mkdir(parents=True, exist_ok=True)
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="d2v_") as folder:
        file = Path(folder, path.name)
        yield file
        path.upload(file)
