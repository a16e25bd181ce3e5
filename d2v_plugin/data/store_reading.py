"""Samples read from stores: many requests at a time, ahead of those who need the answers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Final, NamedTuple

from d2v_plugin.core.remote import RemotePath
from d2v_plugin.core.store import is_concurrent, read_ranges
from d2v_plugin.data.order import Rows
from d2v_plugin.data.store_cache import RangeCache, open_cache

if TYPE_CHECKING:
    from d2v_plugin.data.files import Location

Locate = Callable[[int], "Location"]
"""Finds the place of a row."""

MAX_BYTES: Final = 1 << 30
"""Of one sample's file or byte range."""

NUM_THREADS: Final = 64
"""Each of which waits for one answer: of a store that answers after 50 ms that is 1,280 a second."""

_NUM_BATCHES: Final = 8
_BATCH_SIZE: Final = 32
"""Ranges of archives are asked for by so many threads, so many at once; a thread for each would take twice the processor time."""

_MAX_BATCH: Final = 4 << 20
"""Bytes of what is asked for at once, and of a request for several samples that lie beside each other."""

_MAX_GAP: Final = 16 << 10
"""Bytes between two of them, such as the header and the label of a sample in a tar archive, which are read in vain."""

_MAX_AHEAD: Final = 1 << 27
"""Bytes, over all passes of a reader that are fetched ahead: what a store sends in 0.1 s at 1.3 GB/s."""

_MAX_KEPT: Final = 1 << 29
"""Bytes that wait, of all readers together."""

_ASSUMED: Final = 1 << 20
"""Bytes of an object whose size is not known yet, for these bounds."""

_MAX_PASSES: Final = 256


@dataclass
class _Wanted:
    """Bytes that are asked for, and how often somebody is going to come for them."""

    location: Location
    answer: Future[bytes] = field(default_factory=Future)
    num_readers: int = 0

    @property
    def size(self) -> int:
        return _size_of(self.location)


_Group = list[_Wanted]
"""What is read with one request."""


class _Missing(NamedTuple):
    """What the cache does not have."""

    wanted: _Wanted
    key: str
    start: int
    stop: int


class StoreReader:
    """Reads ranges of objects in threads; what nobody has come for yet waits for its readers, up to a bound."""

    def __init__(self, cache: RangeCache) -> None:
        self._cache = cache
        self._objects = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="store")
        self._batches = ThreadPoolExecutor(_NUM_BATCHES, thread_name_prefix="store")
        self._wanted: OrderedDict[Location, _Wanted] = OrderedDict()
        self._num_bytes = 0
        self._lock = Lock()
        self._version = lru_cache(maxsize=1 << 14)(_find_version)

    def read(self, location: Location) -> bytes:
        """
        :raises OSError: the object cannot be read, or ends before the range does.
        """
        with self._lock:
            if location not in self._wanted:
                self._want([location])
            wanted = self._wanted[location]
            wanted.num_readers -= 1
            self._num_bytes -= wanted.size
            if not wanted.num_readers:
                del self._wanted[location]
        return wanted.answer.result()

    def request(self, locations: Iterable[Location]) -> None:
        """Begin to read what is going to be asked for, each as often as it is named; neighbors in an archive together."""
        with self._lock:
            # A dataset of several may be on this machine in part.
            self._want([location for location in locations if location.is_remote])
            while self._num_bytes > _MAX_KEPT and len(self._wanted) > 1:
                # Nobody came, as after a run went on elsewhere.
                self._forget(next(iter(self._wanted.values())))

    def _want(self, locations: Sequence[Location]) -> None:
        new = []
        for location in locations:
            if (wanted := self._wanted.get(location)) is None:
                wanted = self._wanted[location] = _Wanted(location)
                new.append(wanted)
            wanted.num_readers += 1
            self._num_bytes += wanted.size
        for batch in _batch(_join(new)):
            (self._batches if len(batch) > 1 else self._objects).submit(self._fetch, batch)

    def _forget(self, wanted: _Wanted) -> None:
        del self._wanted[wanted.location]
        self._num_bytes -= wanted.num_readers * wanted.size

    def _fetch(self, groups: Sequence[_Group]) -> None:
        try:
            missing = [found for group in groups if (found := [*self._find_missing(group)])]
            ranges = [
                (found[0].wanted.location.path, min(each.start for each in found), max(each.stop for each in found))
                for found in missing
            ]
            for found, (path, first, last), data in zip(missing, ranges, read_ranges(ranges), strict=True):
                self._answer(found, path, first, last, data)
        except Exception as ex:  # nobody foresaw it
            for wanted in (wanted for group in groups for wanted in group if not wanted.answer.done()):
                wanted.answer.set_exception(ex)

    def _find_missing(self, group: _Group) -> Iterator[_Missing]:
        """Answer from the cache; yield what it does not have."""
        for wanted in group:
            location = wanted.location
            try:
                size, key = self._look_up(location)
            except OSError as ex:
                self._fail(wanted, ex)
                continue
            data = self._cache.get(key, size) if size else b""
            if data is None:
                yield _Missing(wanted, key, location.offset, location.offset + size)
            else:
                wanted.answer.set_result(data)

    def _answer(self, found: Sequence[_Missing], path: str, first: int, last: int, data: bytes | None) -> None:
        """:param data: bytes [first, last) of the object; None = they did not come, and are asked for until it is clear why."""
        try:
            data = RemotePath(path).read_range(first, last) if data is None else data
        except OSError as ex:
            for each in found:
                self._fail(each.wanted, ex)
            return
        for wanted, key, start, stop in found:
            part = data[start - first : stop - first]
            self._cache.put(key, part)
            wanted.answer.set_result(part)

    def _fail(self, wanted: _Wanted, ex: OSError) -> None:
        with self._lock:
            if self._wanted.get(wanted.location) is wanted:  # whoever comes asks once more
                self._forget(wanted)
        wanted.answer.set_exception(ex)

    def _look_up(self, location: Location) -> tuple[int, str]:
        """The size of what is read, and its name in the cache.

        :raises OSError: the object ends before, or it is too large.
        """
        # A range of an archive is asked for with the archive's version; a whole object is looked up first in any case.
        version, available = self._version(location.path) if location.size is not None else _find_version(location.path)
        size = available if location.size is None else location.size
        if size > min(available - location.offset, MAX_BYTES):
            limit = f"but the object has {available:,}" if size <= MAX_BYTES else f"more than the {MAX_BYTES:,} that are read"
            raise OSError(f"{location} has {size:,} bytes, {limit}.")
        return size, f"{location.path}\n{version}\n{location.offset}\n{size}"


def _size_of(location: Location) -> int:
    return _ASSUMED if location.size is None else location.size


def _join(wanted: Sequence[_Wanted]) -> list[_Group]:
    """Put ranges of an archive that lie beside each other together, in the order in which the first of each group is needed."""
    turns = {id(each): turn for turn, each in enumerate(wanted)}
    groups: list[_Group] = []
    for each in sorted(wanted, key=lambda each: (each.location.path, each.location.offset)):
        if groups and _are_neighbors(groups[-1][0].location, groups[-1][-1].location, each.location):
            groups[-1].append(each)
        else:
            groups.append([each])
    return sorted(groups, key=lambda group: min(turns[id(each)] for each in group))


def _are_neighbors(first: Location, last: Location, new: Location) -> bool:
    if new.path != last.path or new.size is None or last.size is None:
        return False
    return new.offset - last.offset - last.size <= _MAX_GAP and new.offset + new.size - first.offset <= _MAX_BATCH


def _batch(groups: Iterable[_Group]) -> Iterator[list[_Group]]:
    """Cut groups into those that are asked for at once: whole objects and what such a store cannot answer so come alone."""
    batch: list[_Group] = []
    scheme, size = "", 0
    for group in groups:
        location = group[0].location
        is_alone = location.size is None or not is_concurrent(location.path)
        if batch and (is_alone or scheme != location.scheme or size >= _MAX_BATCH or len(batch) == _BATCH_SIZE):
            yield batch
            batch, size = [], 0
        batch.append(group)
        scheme, size = location.scheme, _MAX_BATCH if is_alone else size + sum(each.size for each in group)
    if batch:
        yield batch


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
        self._asked: dict[int, int] = {}
        """Bytes of each pass that is asked for ahead."""
        self._lock = Lock()

    def __call__(self, pass_nr: int) -> None:
        """Ask for what a pass reads, which is next, and for those after it. Safe to call from many threads."""
        with self._lock:
            if not self._next - _MAX_PASSES <= pass_nr <= self._next:
                self._next = pass_nr  # the run goes on elsewhere
            self._request(pass_nr + 1, MAX_BYTES)  # alone, since it is waited for
            self._asked = {asked: size for asked, size in self._asked.items() if pass_nr < asked < self._next}
            room = _MAX_AHEAD - sum(self._asked.values())
            # Many passes at once: the more are known, the more of their samples are neighbors.
            if room > _MAX_AHEAD // 2 and len(self._asked) < _MAX_PASSES // 2:
                self._request(pass_nr + _MAX_PASSES, room)

    def _request(self, stop: int, room: int) -> None:
        """Ask for passes before ``stop``, for about so many bytes."""
        places: list[Location] = []
        while self._next < stop and room > 0 and (rows := self._find_rows(self._next)) is not None:
            found = [self._locate(row) for row in rows.tolist()]
            self._asked[self._next] = sum(map(_size_of, found))
            room -= self._asked[self._next]
            places += found
            self._next += 1
        store_reader().request(places)
