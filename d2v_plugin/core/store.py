"""Requests to object stores and web servers, through fsspec, which are repeated until they are answered or cannot be.

A request that fails is sent again, with growing pauses; what stays wrong is an :class:`OSError` that names the place, in which
nothing secret is left.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from random import SystemRandom
from typing import Any, Final, NoReturn, TypeVar

from d2v_plugin.core.secrets import hide_in

T = TypeVar("T")

_URL: Final = re.compile(r"([a-z][a-z0-9+]+):/+(?=[^/])")
_LOCAL: Final = ("file", "local")
READ_ONLY: Final = ("http", "https")

_NUM_CONNECTIONS: Final = 128
"""To S3 at a time, where botocore's own bound is 10: 200 answers a second of a store that takes 50 ms for each."""

_NUM_ATTEMPTS: Final = 6
_FIRST_PAUSE: Final = 0.1
"""Seconds before the second attempt; every further one waits twice as long, and up to half as long again."""

# Statuses of HTTP that may be other ones in a moment.
_PASSING: Final = (408, 425, 429)
_FINAL: Final = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)
_jitter: Final = SystemRandom()


def is_url(path: str | os.PathLike[str]) -> bool:
    """Tell if a path, in the spelling of an address or of :class:`~pathlib.Path`, is none of this machine's."""
    found = _URL.match(str(path))
    if found is None or found[1] in _LOCAL:
        return False
    import fsspec  # type: ignore[import-untyped]

    return found[1] in fsspec.registry or found[1] in fsspec.available_protocols()


def scheme_of(address: str) -> str:
    """What an address begins with, such as ``s3``."""
    return address.partition(":")[0]


@lru_cache(maxsize=16)
def open_store(scheme: str) -> Any:
    """fsspec's file system, one for all threads. Listings are not cached, since other processes write, too."""
    import fsspec

    settings = {}
    if scheme in ("s3", "s3a"):
        user = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        settings["config_kwargs"] = {"max_pool_connections": _NUM_CONNECTIONS, **user}
    return fsspec.filesystem(scheme, use_listings_cache=False, **settings)


@lru_cache(maxsize=1)
def teach_fairseq2() -> None:
    """Let fairseq2's file system, which knows ``s3`` alone, find all stores that can be written to."""
    import fsspec
    from fairseq2.file_system import FileSystem, FileSystemRegistry, FSspecFileSystem

    def register(scheme: str) -> None:
        def create() -> FileSystem:
            return FSspecFileSystem(open_store(scheme), f"{scheme}://")

        FileSystemRegistry.register(lambda path: str(path).startswith(f"{scheme}:/"), create)

    for scheme in {*fsspec.available_protocols(), *fsspec.registry} - {"s3", *_LOCAL, *READ_ONLY}:
        register(scheme)


def ask(address: str, request: Callable[[Any, str], T], *, writes: bool = False) -> T:
    """Send a request to a store, again if it fails for a reason that may pass.

    :param request: given the store and the address.
    :param writes: whether it changes anything.
    :raises OSError: it cannot be answered; names the place.
    """
    scheme = scheme_of(address)
    if writes and scheme in READ_ONLY:
        raise OSError(errno.EROFS, "a web server is only read from; name a folder or an object store", hide_in(address))
    pause = _FIRST_PAUSE
    for attempt in range(1, _NUM_ATTEMPTS + 1):
        try:
            return request(open_store(scheme), address)
        except Exception as ex:
            if attempt == _NUM_ATTEMPTS or _is_final(ex):
                _raise(ex, address)
            time.sleep(pause * (1 + _jitter.random() / 2))
            pause *= 2
    raise AssertionError


def is_concurrent(address: str) -> bool:
    """Tell if a store answers several requests of one thread at the same time."""
    return bool(open_store(scheme_of(address)).async_impl)


def read_ranges(ranges: Sequence[tuple[str, int, int]]) -> list[bytes | None]:
    """Read bytes [start, stop) of objects of one store, once and all at the same time; None = they did not come, or not whole.

    :param ranges: address, start and stop of each.
    """
    if not ranges:
        return []
    addresses, starts, stops = map(list, zip(*ranges, strict=True))
    try:
        found = open_store(scheme_of(addresses[0])).cat_ranges(addresses, starts, stops, on_error="return")
    except Exception:  # of all of them; whoever asks again is told
        found = [None] * len(ranges)
    return [
        data if isinstance(data, bytes) and len(data) == stop - start else None
        for data, start, stop in zip(found, starts, stops, strict=True)
    ]


def _is_final(ex: Exception) -> bool:
    import asyncio  # takes a third of the time in which the command starts; who asks a store has it

    if isinstance(ex, asyncio.TimeoutError | TimeoutError | ConnectionError):
        return False
    # Libraries of the network derive their errors from OSError, too.
    if isinstance(ex, OSError) and not isinstance(ex, _FINAL) and ex.errno in (None, errno.EIO, errno.EBUSY, errno.EINVAL):
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
