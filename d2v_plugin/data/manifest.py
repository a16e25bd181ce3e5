"""Manifests: one TSV file per split that says where the samples lie and what is known of them.

``manifests/README.md`` documents the format. A manifest of millions of rows must open in a second or two and stay small, so
the file stays memory-mapped, only the positions of its fields are kept (found by NumPy), and a row is read when it is needed.
What a row can be wrong about is checked at once, for all rows, when the manifest is opened.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from fairseq2.recipe.error import RecipeError

from d2v_plugin.data.files import Location
from d2v_plugin.data.tsv_scan import BoolArray, IntArray, find_byte, map_file, parse_numbers

_CHUNK = 1 << 16
_NUM_LISTED = 100
_NEWLINE, _TAB, _COLON, _RETURN, _SLASH = b"\n\t:\r/"


class ManifestError(RecipeError):
    """Lists everything that is wrong with the manifests of a dataset, with file and line numbers."""


@dataclass(frozen=True)
class Columns:
    """The columns a manifest may have, in their order where it does not declare its own."""

    names: Sequence[str]
    """All names; the first is always ``path``."""

    required: Sequence[str] = ("path",)
    """Those every row must fill; without a declaration these come first."""

    integers: Sequence[str] = ()
    """Those that hold numbers of 0 or more."""


@dataclass
class Problems:
    """What is wrong, collected so that it can be said at once."""

    messages: list[tuple[str, int, str]] = field(default_factory=list)

    def add(self, path: Path, line: int, message: str) -> None:
        """:param line: counted from 1."""
        self.messages.append((str(path), line, message))

    def raise_if_any(self) -> None:
        """:raises ManifestError: something was added."""
        if not self.messages:
            return
        self.messages.sort()
        listed = "\n".join(f"{path}:{line}: {message}" for path, line, message in self.messages[:_NUM_LISTED])
        more = len(self.messages) - _NUM_LISTED
        tail = f"\n… and {more:,} more." if more > 0 else ""

        text = f"{len(self.messages):,} bad line(s) in the dataset's files:\n{listed}{tail}"
        # What is no UTF-8 could not be printed.
        raise ManifestError(text.encode("utf-8", errors="backslashreplace").decode())


class Manifest:
    """The samples of one split."""

    def __init__(self, path: Path, columns: Columns, problems: Problems, *, check_files: bool = True) -> None:
        """Open and check a manifest; what is wrong with it is added to ``problems``.

        :param check_files: look for every file (archives: for every byte range too).
        """
        self.path = path
        self.columns = columns
        self.roots: list[str] = []
        self.declared_classes: list[str] | None = None
        self._names = list(columns.names)
        self._required = len(columns.required)
        self._problems = problems
        self._data: mmap.mmap | bytes = map_file(path)
        self._buffer = np.frombuffer(self._data, dtype=np.uint8)
        self._first_line = 1

        self._find_lines()
        self._read_header()
        self._find_fields()
        self._find_byte_ranges()
        self._check_paths()
        self._integers = {name: self._parse_column(name) for name in columns.integers if name in self._names}
        self._check_classes()
        if check_files:
            self._check_files()

    def __len__(self) -> int:
        return len(self._starts)

    def location(self, row: int) -> Location:
        """Where the bytes of a sample lie."""
        path = self._file_of(self._data[self._starts[row] : self._path_ends[row]])
        if self._sizes[row] < 0:
            return Location(path)

        return Location(path, int(self._offsets[row]), int(self._sizes[row]))

    def line_of(self, row: int) -> int:
        """The line a row stands on, counted from 1."""
        return self._first_line + row

    def name_of(self, row: int) -> str:
        """Line and location of a row, as reports name it."""
        return f"{self.line_of(row)}: {self.location(row)}"

    def text(self, column: str, row: int) -> str | None:
        """A field as it is written; None where the row has none."""
        if column not in self._names:
            return None
        index = self._names.index(column)
        first, count = self._first_tabs[row], self._num_tabs[row]
        if index > count:
            return None
        start = self._starts[row] if index == 0 else self._tabs[first + index - 1] + 1
        end = self._ends[row] if index == count else self._tabs[first + index]

        return _decode(self._data[start:end]) or None

    def integers(self, column: str) -> IntArray:
        """(rows,) a column of numbers; -1 where the row has none."""
        if column not in self._integers:
            return np.full(len(self), -1, dtype=np.int64)

        return self._integers[column]

    def distinct(self, column: str) -> list[str]:
        """The different values of a column, sorted: as numbers if all of them are."""
        if column not in self._names:
            return []
        values = {value for _, value in self._walk(*self._bounds(column))}
        texts = [_decode(value) for value in values if value]

        return sorted(texts, key=int) if all(text.isdecimal() for text in texts) else sorted(texts)

    # Reading the file

    def _find_lines(self) -> None:
        """Find where each line starts and ends; a byte order mark and carriage returns are not part of it."""
        buffer = self._buffer
        breaks = find_byte(buffer, _NEWLINE)
        if len(buffer) and buffer[-1] != _NEWLINE:
            breaks = np.append(breaks, len(buffer))
        starts = np.empty_like(breaks)
        if len(starts):
            starts[0] = 3 if self._data[:3] == b"\xef\xbb\xbf" else 0
            starts[1:] = breaks[:-1] + 1
        ends = breaks
        returned = ends > starts
        returned[returned] = buffer[ends[returned] - 1] == _RETURN
        self._starts, self._ends = starts, ends - returned

    def _read_header(self) -> None:
        """Read the line of roots and the declarations below it, and take them off the rows."""
        if not len(self._starts):
            self._problems.add(self.path, 1, "the file is empty; its first line must be the root folder of the paths below it")
            return
        for line in range(len(self._starts)):
            fields = _decode(self._data[self._starts[line] : self._ends[line]]).split("\t")
            if line == 0:
                self.roots = [os.path.abspath(self.path.parent / root) for root in fields]
            elif fields[0] == "#columns":
                self._declare_columns(fields[1:], line + 1)
            elif fields[0] == "#classes":
                self.declared_classes = fields[1:]
            else:
                break
        else:
            line += 1
        self._first_line = line + 1
        self._starts, self._ends = self._starts[line:], self._ends[line:]
        if not len(self._starts):
            self._problems.add(self.path, line, "there are no samples, only the header")

    def _declare_columns(self, names: list[str], line: int) -> None:
        known = ", ".join(self.columns.names)
        if wrong := [name for name in names if name not in self.columns.names]:
            self._problems.add(self.path, line, f"unknown column(s) {', '.join(wrong)}; known are: {known}")
        elif names[:1] != ["path"] or len(set(names)) < len(names):
            self._problems.add(self.path, line, "`path` must be the first column, and no column may repeat")
        elif missing := [name for name in self.columns.required if name not in names]:
            self._problems.add(self.path, line, f"column(s) {', '.join(missing)} are missing")
        else:
            self._names = names
            self._required = 1 + max(names.index(name) for name in self.columns.required)

    def _find_fields(self) -> None:
        """Find the tabs of each row, and drop rows that have too few or too many."""
        self._tabs = find_byte(self._buffer, _TAB)
        self._first_tabs = np.searchsorted(self._tabs, self._starts)
        self._num_tabs = np.searchsorted(self._tabs, self._ends) - self._first_tabs
        names = self._names
        self._valid = np.ones(len(self), dtype=bool)
        few, many = self._num_tabs < self._required - 1, self._num_tabs >= len(names)
        self._report(few | many, lambda row: f"{self._num_tabs[row] + 1} column(s), expected {', '.join(names)}")

    def _bounds(self, column: str) -> tuple[IntArray, IntArray]:
        """(rows,) starts and ends of a column; empty where a row does not have it."""
        index = self._names.index(column)
        starts = self._starts if index == 0 else np.where(self._num_tabs >= index, self._tab(index - 1) + 1, self._ends)
        ends = np.where(self._num_tabs > index, self._tab(index), self._ends)

        return starts, np.maximum(starts, ends)

    def _tab(self, index: int) -> IntArray:
        """(rows,) position of the ``index``-th tab of each row; meaningless where there is none."""
        if not len(self._tabs):
            return self._ends

        return self._tabs[np.minimum(self._first_tabs + index, len(self._tabs) - 1)]

    def _find_byte_ranges(self) -> None:
        """Split ``path:offset:size``; a colon that is not followed by numbers belongs to the file name."""
        starts, ends = self._bounds("path")
        self._path_ends = ends
        self._offsets = np.zeros(len(starts), dtype=np.int64)
        self._sizes = np.full(len(starts), -1, dtype=np.int64)
        colons = find_byte(self._buffer, _COLON)
        if len(colons) < 2:
            return
        last = np.maximum(np.searchsorted(colons, ends) - 1, 1)
        first_colons, second_colons = colons[last - 1], colons[last]
        inside = (first_colons > starts) & (second_colons < ends)
        offsets = parse_numbers(self._buffer, first_colons + 1, second_colons, inside)
        sizes = parse_numbers(self._buffer, second_colons + 1, ends, inside)
        ranged = inside & (offsets >= 0) & (sizes >= 0)
        self._path_ends = np.where(ranged, first_colons, ends)
        self._offsets = np.where(ranged, offsets, 0)
        self._sizes = np.where(ranged, sizes, -1)

    def _parse_column(self, name: str) -> IntArray:
        starts, ends = self._bounds(name)
        filled = ends > starts
        values = parse_numbers(self._buffer, starts, ends, filled)
        required = self._names.index(name) < self._required
        wrong = (values < 0) & (filled | required)
        self._report(wrong, lambda row: f"`{name}` must be a number, but is `{self.text(name, row) or ''}`")

        return values

    # Checks of what is written

    def _check_paths(self) -> None:
        """Check that each path names a file inside a root."""
        starts, ends = self._starts, self._path_ends
        self._report(ends == starts, lambda row: "the path is empty")
        self._report(ends - starts > 4096, lambda row: "the path is longer than 4,096 bytes")
        self._report(self._sizes == 0, lambda row: "the byte range is empty")
        if not self.roots:
            return
        suspect = self._buffer[np.minimum(starts, len(self._buffer) - 1)] == _SLASH
        prefixes = tuple(os.fsencode(os.path.join(root, "")) for root in self.roots)
        for row in np.flatnonzero(suspect).tolist():
            suspect[row] = not self._data[starts[row] : ends[row]].startswith(prefixes)
        for pattern in (b"..", b"\0"):
            suspect[self._rows_with(pattern)] = True
        escapes = np.zeros_like(suspect)
        for row in np.flatnonzero(suspect):
            name = self._data[starts[row] : ends[row]]
            escapes[row] = b"\0" in name or not _lies_inside(self._file_of(name), self.roots)
            if b".." in name.split(b"/") and not escapes[row]:
                # Behind a symbolic link `..` leads elsewhere than it reads.
                real_roots = [os.path.realpath(root) for root in self.roots]
                escapes[row] = not _lies_inside(os.path.realpath(self._file_of(name)), real_roots)
        roots = ", ".join(self.roots)
        self._report(escapes, lambda row: f"{self.text('path', row)!r:.200} lies outside of the root ({roots})")

    def _rows_with(self, pattern: bytes) -> list[int]:
        """Rows in which a rare pattern occurs."""
        found, position = [], -1
        while (position := self._data.find(pattern, position + 1)) >= 0:
            row = int(np.searchsorted(self._starts, position, side="right")) - 1
            if row >= 0:
                found.append(row)
                position = int(self._ends[row])

        return found

    def _check_classes(self) -> None:
        if self.declared_classes is None or "label" not in self._names:
            return
        classes = {_encode(label) for label in self.declared_classes} | {b""}
        wrong = np.zeros(len(self), dtype=bool)
        for row, label in self._walk(*self._bounds("label")):
            if label not in classes:
                wrong[row] = True
        self._report(wrong, lambda row: f"label `{self.text('label', row)}` is not declared in `#classes`")

    def _check_files(self) -> None:
        """Check that files exist, by listing folders rather than by asking for each file, and that archives are long enough."""
        listings: dict[bytes, set[bytes]] = {}
        archive_sizes: dict[bytes, int] = {}
        missing = np.zeros(len(self), dtype=bool)
        lengths = np.full(len(self), np.iinfo(np.int64).max)
        ranged = (self._sizes >= 0).tolist()
        valid = self._valid.tolist()
        for row, name in self._walk(self._starts, self._path_ends):
            if not valid[row]:
                continue
            if not ranged[row]:
                folder, _, file = name.rpartition(b"/")
                if name.startswith(b"/"):
                    folder = folder or b"/"
                if folder not in listings:
                    listings[folder] = _list_folder(self._file_of(folder))
                missing[row] = file not in listings[folder]
                continue
            if name not in archive_sizes:
                archive_sizes[name] = _file_size(self._file_of(name))
            lengths[row] = archive_sizes[name]
        missing |= lengths < 0
        self._report(missing, lambda row: f"`{self.location(row).path}` does not exist")
        short = (self._offsets + np.maximum(self._sizes, 0)) > lengths
        self._report(short, lambda row: f"`{self.location(row)}` reaches beyond the end of the file ({lengths[row]} bytes)")

    def _report(self, rows: BoolArray, describe: Callable[[int], str]) -> None:
        """Say what is wrong with rows, once for each row: what is found first is the cause of the rest."""
        rows = rows & self._valid
        self._valid &= ~rows
        for row in np.flatnonzero(rows):
            self._problems.add(self.path, self.line_of(int(row)), describe(int(row)))

    def _walk(self, starts: IntArray, ends: IntArray) -> Iterator[tuple[int, bytes]]:
        """Yield (row, bytes) for all rows; by chunks, since a list of a million Python numbers is large."""
        data = self._data
        for first in range(0, len(starts), _CHUNK):
            chunk = zip(starts[first : first + _CHUNK].tolist(), ends[first : first + _CHUNK].tolist(), strict=True)
            for row, (start, end) in enumerate(chunk, first):
                yield row, data[start:end]

    def _file_of(self, name: bytes) -> str:
        """The absolute path of a file; a path that is already absolute stays as it is."""
        return os.path.join(self.roots[0], os.fsdecode(name)) if self.roots else os.fsdecode(name)


def _decode(text: bytes) -> str:
    return text.decode("utf-8", errors="surrogateescape")


def _encode(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogateescape")


def _lies_inside(path: str, roots: list[str]) -> bool:
    path = os.path.normpath(path)

    return any(root == "/" or path.startswith(root + "/") for root in roots)


def _list_folder(path: str) -> set[bytes]:
    try:
        return set(os.listdir(os.fsencode(path)))
    except OSError:
        return set()


def _file_size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
