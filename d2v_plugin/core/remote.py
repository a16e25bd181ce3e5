"""Places on object stores and web servers: paths whose files fsspec reads and writes.

fairseq2 passes every place on as a :class:`~pathlib.Path`, which makes ``s3:/bucket/key`` of ``s3://bucket/key``. :func:`place`
turns both spellings into a :class:`RemotePath`, a path like any other except that its methods ask the store. What takes local
files only, such as a decoder in C, asks for the name of the file, and is refused there, in one line.

A request that fails is repeated, with growing pauses; what stays wrong is an :class:`OSError` that names the place.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path, PosixPath
from random import SystemRandom
from typing import IO, Any, Final, NoReturn, TypeVar

from typing_extensions import Self

from d2v_plugin.core.secrets import hide_in

T = TypeVar("T")

_URL: Final = re.compile(r"([a-z][a-z0-9+]+):/+(?=[^/])")
_LOCAL: Final = ("file", "local")
_READ_ONLY: Final = ("http", "https")

_VERSIONS: Final = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "mtime", "updated", "created")
"""What stores tell of an object that changes with its contents."""

_BUCKETS: Final = ("s3", "s3a", "gs", "gcs", "oss", "oci", "abfs", "az")
"""Stores on which somebody has to make a bucket first; fairseq2 would make one in silence."""

_NUM_ATTEMPTS: Final = 6
_FIRST_PAUSE: Final = 0.1
"""Seconds before the second attempt; every further one waits twice as long, and up to half as long again."""

# Statuses of HTTP that may be other ones in a moment.
_PASSING: Final = (408, 425, 429)
_jitter: Final = SystemRandom()


def is_url(path: str | os.PathLike[str]) -> bool:
    """Tell if a path, in the spelling of an address or of :class:`~pathlib.Path`, is none of this machine's."""
    found = _URL.match(str(path))
    if found is None or found[1] in _LOCAL:
        return False
    import fsspec  # type: ignore[import-untyped]

    return found[1] in fsspec.registry or found[1] in fsspec.available_protocols()


def place(path: str | Path) -> Path:
    """The path of a file or a folder, wherever it is; a local one stays what it is."""
    return (
        RemotePath(path) if not isinstance(path, RemotePath) and is_url(path) else Path(path) if isinstance(path, str) else path
    )


@lru_cache(maxsize=16)
def _open_store(scheme: str) -> Any:
    """fsspec's file system, one for all threads. Listings are not cached, since other processes write, too."""
    import fsspec

    return fsspec.filesystem(scheme, use_listings_cache=False)


@lru_cache(maxsize=1)
def teach_fairseq2() -> None:
    """Let fairseq2's file system, which knows ``s3`` alone, find all stores."""
    import fsspec
    from fairseq2.file_system import FileSystem, FileSystemRegistry, FSspecFileSystem

    def register(scheme: str) -> None:
        def create() -> FileSystem:
            return FSspecFileSystem(_open_store(scheme), f"{scheme}://")

        FileSystemRegistry.register(lambda path: str(path).startswith(f"{scheme}:/"), create)

    for scheme in {*fsspec.available_protocols(), *fsspec.registry} - {"s3", *_LOCAL}:
        register(scheme)


def _ask(path: RemotePath, request: Callable[[Any, str], T], *, writes: bool = False) -> T:
    """Send a request to a store, again if it fails for a reason that may pass.

    :param request: given the store and the address.
    :raises OSError: it cannot be answered; names the place.
    """
    address, scheme = str(path), path.scheme
    if writes and scheme in _READ_ONLY:
        raise OSError(errno.EROFS, "a web server is only read from; name a folder or an object store", hide_in(address))
    pause = _FIRST_PAUSE
    for attempt in range(1, _NUM_ATTEMPTS + 1):
        try:
            return request(_open_store(scheme), address)
        except Exception as ex:
            if attempt == _NUM_ATTEMPTS or _is_final(ex):
                _raise(ex, address)
            time.sleep(pause * (1 + _jitter.random() / 2))
            pause *= 2
    raise AssertionError


def _is_final(ex: Exception) -> bool:
    if isinstance(ex, asyncio.TimeoutError | TimeoutError | ConnectionError):
        return False
    if (
        isinstance(ex, OSError)
        and ex.errno in (None, errno.EIO, errno.EBUSY, errno.EINVAL)
        and not isinstance(ex, FileNotFoundError)
    ):
        return False
    status = getattr(ex, "status", None)
    if isinstance(status, int):
        return 400 <= status < 500 and status not in _PASSING
    # Not botocore's and aiohttp's own, which are of the network but for these.
    return isinstance(ex, OSError | ImportError | ValueError | NotImplementedError) or type(ex).__name__ in (
        "NoCredentialsError",
        "PartialCredentialsError",
        "ParamValidationError",
        "InvalidRegionError",
        "ProfileNotFound",
        "UnauthorizedSSOTokenError",
    )


def _raise(ex: Exception, address: str) -> NoReturn:
    """Raise an error that names the place, and hides what is secret in address and reason."""
    status = getattr(ex, "status", None)
    if isinstance(ex, FileNotFoundError):
        number, reason = errno.ENOENT, "no such object or bucket"
    elif "Credential" in type(ex).__name__ or isinstance(ex, PermissionError) or status in (401, 403):
        number, reason = errno.EACCES, f"the store refuses access ({_first_line(ex)})"
    elif isinstance(ex, ImportError | NotImplementedError | ValueError) or "Validation" in type(ex).__name__:
        number, reason = errno.EPERM, _first_line(ex)
    else:
        number, reason = errno.EIO, f"the store does not answer as it should, tried {_NUM_ATTEMPTS} times ({_first_line(ex)})"
    raise OSError(number, hide_in(reason), hide_in(address)) from None


def _first_line(ex: Exception) -> str:
    strerror = getattr(ex, "strerror", None)
    text = " ".join(str(strerror or ex).split())
    return f"{text or type(ex).__name__:.300}".rstrip(".")


class RemotePath(PosixPath):
    """A path on a store. Folders are there as long as something is in them."""

    def __str__(self) -> str:
        scheme, _, rest = super().__str__().partition(":/")
        return f"{scheme}://{rest.lstrip('/')}"

    def __fspath__(self) -> str:
        raise OSError(errno.EREMOTE, "only a local file or folder can be used here; copy it first", hide_in(str(self)))

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
        return self.parts[0].rstrip(":")

    def check_writable(self) -> None:
        """
        :raises OSError: nothing can be written here: it is on a web server, or there is no such bucket.
        """
        if self.scheme in _READ_ONLY:
            _ask(self, lambda store, address: None, writes=True)
        bucket = type(self)(*self.parts[:2])
        if self.scheme in _BUCKETS and not bucket.exists():
            raise FileNotFoundError(errno.ENOENT, "no such bucket", str(bucket))

    # What is there

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Size and, in ``st_mtime_ns``, a number that changes with the contents, if the store tells any such thing."""
        info = _ask(self, lambda store, address: store.info(address))
        kind = stat.S_IFDIR if info.get("type") == "directory" else stat.S_IFREG
        told = [
            info.get(key) for key in ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "mtime", "updated", "created")
        ]
        version = int.from_bytes(hashlib.sha256(repr(told).encode()).digest()[:7], "big")
        size = int(info.get("size") or 0)
        return os.stat_result((kind | 0o644, 0, 0, 1, 0, 0, size, 0, 0, 0, 0.0, 0.0, 0.0, 0, version, 0))

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        return bool(_ask(self, lambda store, address: store.exists(address)))

    def is_file(self) -> bool:
        return bool(_ask(self, lambda store, address: store.isfile(address)))

    def is_dir(self) -> bool:
        return bool(_ask(self, lambda store, address: store.isdir(address)))

    def iterdir(self) -> Iterator[Self]:
        names = _ask(self, lambda store, address: store.ls(address, detail=False))
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
        found = _ask(self, lambda store, address: store.find(address, detail=True))
        base = _ask(self, lambda store, address: str(store._strip_protocol(address))).rstrip("/") + "/"
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

        data = _ask(self, request)
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
        _ask(self, lambda store, address: store.pipe_file(address, content), writes=True)
        return len(content)

    def open(self, mode: str = "r", *args: Any, **kwargs: Any) -> IO[Any]:  # type: ignore[override]
        """Open the file to read it; it is written whole, by :meth:`write_bytes` or :func:`written`."""
        if mode not in ("r", "rb"):
            self.__fspath__()
        from io import BytesIO, StringIO

        data = self.read_bytes()
        return BytesIO(data) if mode == "rb" else StringIO(data.decode(kwargs.get("encoding") or "utf-8"))

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        pass

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            _ask(self, lambda store, address: store.rm_file(address), writes=True)
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
        for name in names:
            _ask(self / name, lambda store, address, to=str(new / name): store.cp_file(address, to), writes=True)
        for name in names:
            (self / name).unlink(missing_ok=True)
        return new

    def upload(self, file: Path) -> None:
        """Write the contents of a local file."""

        def request(store: Any, address: str) -> None:
            store.put_file(str(file), address)
            if store.info(address)["size"] != file.stat().st_size:
                raise ConnectionError("what was written is not whole")

        _ask(self, request, writes=True)

    def download(self, file: Path) -> None:
        """Copy the object into a local file."""

        def request(store: Any, address: str) -> None:
            store.get_file(address, str(file))
            if store.info(address)["size"] != file.stat().st_size:
                raise ConnectionError("what was read is not whole")

        file.parent.mkdir(parents=True, exist_ok=True)
        _ask(self, request)


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
