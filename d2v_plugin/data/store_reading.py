"""Samples read from stores: many requests at a time, ahead of those who need the answers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Final

from d2v_plugin.core.remote import RemotePath
from d2v_plugin.data.order import Rows
from d2v_plugin.data.store_cache import RangeCache, open_cache

if TYPE_CHECKING:
    from d2v_plugin.data.files import Location

Locate = Callable[[int], "Location"]
"""Finds the place of a row."""

MAX_BYTES: Final = 1 << 30
"""Of one sample's file or byte range."""

NUM_REQUESTS: Final = 64
"""At a time; of a store that answers after 50 ms that is 1,280 samples a second."""

_MAX_AHEAD: Final = 1 << 28
"""Bytes, over all passes that are fetched ahead; twice as many are kept."""

_MAX_PASSES: Final = 256


class StoreReader:
    """Reads ranges of objects in threads; what nobody has asked for yet waits for its reader, up to a bound."""

    def __init__(self, cache: RangeCache) -> None:
        self._cache = cache
        self._pool = ThreadPoolExecutor(NUM_REQUESTS, thread_name_prefix="store")
        self._requests: OrderedDict[Location, Future[bytes]] = OrderedDict()
        self._num_bytes = 0
        self._lock = Lock()
        self._version = lru_cache(maxsize=1 << 14)(_find_version)

    def read(self, location: Location) -> bytes:
        """
        :raises OSError: the object cannot be read, or ends before the range does.
        """
        with self._lock:
            self._request(location)
            request = self._requests.pop(location)
            self._num_bytes -= location.size or 0
        return request.result()

    def request(self, locations: Iterable[Location]) -> None:
        """Begin to read what is going to be asked for."""
        with self._lock:
            for location in locations:
                if location.is_remote:  # a dataset of several may be on this machine in part
                    self._request(location)
            while self._num_bytes > 2 * _MAX_AHEAD and len(self._requests) > 1:
                # Nobody came, as after a run went on elsewhere.
                dropped, request = self._requests.popitem(last=False)
                request.cancel()
                self._num_bytes -= dropped.size or 0

    @property
    def has_room(self) -> bool:
        """Whether more may be asked for ahead."""
        return self._num_bytes < _MAX_AHEAD and len(self._requests) < 1 << 14

    def _request(self, location: Location) -> None:
        if location not in self._requests:
            self._requests[location] = self._pool.submit(self._fetch, location)
            self._num_bytes += location.size or 0

    def _fetch(self, location: Location) -> bytes:
        # A range of an archive is asked for with the archive's version; a whole object is looked up first in any case.
        version, available = self._version(location.path) if location.size is not None else _find_version(location.path)
        size = available if location.size is None else location.size
        if size > min(available - location.offset, MAX_BYTES):
            limit = f"but the object has {available:,}" if size <= MAX_BYTES else f"more than the {MAX_BYTES:,} that are read"
            raise OSError(f"{location} has {size:,} bytes, {limit}.")
        key = f"{location.path}\n{version}\n{location.offset}\n{size}"
        if (kept := self._cache.get(key)) is not None and len(kept) == size:
            return kept
        data = RemotePath(location.path).read_range(location.offset, location.offset + size) if size else b""
        self._cache.put(key, data)
        return data


def _find_version(path: str) -> tuple[int, int]:
    """What changes with an object's contents, and its size."""
    status = RemotePath(path).stat()
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=1)
def store_reader() -> StoreReader:
    """The reader of this process."""
    return StoreReader(open_cache())


class ReadAhead:
    """Asks a store for the samples of passes to come, whose rows are known in advance."""

    def __init__(self, find_rows: Callable[[int], Rows | None], locate: Locate) -> None:
        """
        :param find_rows: of a pass, from 0; None = there is no such pass any more.
        :param locate: the place of a row.
        """
        self._find_rows = find_rows
        self._locate = locate
        self._next = 0
        self._lock = Lock()

    def __call__(self, pass_nr: int) -> None:
        """Ask for what a pass reads, which is next, and for those after it. Safe to call from many threads."""
        store = store_reader()
        with self._lock:
            if not self._next - _MAX_PASSES <= pass_nr <= self._next:
                self._next = pass_nr  # the run goes on elsewhere
            while self._next <= pass_nr or (store.has_room and self._next < pass_nr + _MAX_PASSES):
                rows = self._find_rows(self._next)
                if rows is None:
                    break
                store.request(map(self._locate, rows.tolist()))
                self._next += 1
