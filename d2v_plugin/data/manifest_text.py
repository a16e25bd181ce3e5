"""The text of a manifest: its lines, the fields of its rows, and the numbers in them, found but not judged."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from d2v_plugin.core.remote import place
from d2v_plugin.core.store import is_url
from d2v_plugin.data.problems import ManifestError, Problems
from d2v_plugin.data.tsv_scan import BoolArray, IntArray, find_byte, parse_numbers, read_file

_CHUNK = 1 << 16
_NEWLINE, _TAB, _COLON, _RETURN = b"\n\t:\r"


@dataclass(frozen=True)
class Columns:
    """The columns a manifest may have, in their order where it does not declare its own."""

    names: Sequence[str]
    """All names; the first is always ``path``."""

    required: Sequence[str] = ("path",)
    """Those every row must fill; without a declaration these come first."""

    integers: Sequence[str] = ()
    """Those that hold numbers of 0 or more."""


class ManifestText:
    """A manifest of R rows, as bytes; of each row the places of its fields are known."""

    def __init__(self, path: Path, columns: Columns, problems: Problems) -> None:
        """Find all lines and fields; what is wrong with the header is added to ``problems``.

        :raises ManifestError: the file cannot be read.
        """
        self.path = path
        self.names: Sequence[str] = columns.names
        """The columns that it has."""
        self.num_required = len(columns.required)
        """How many of them every row must have."""
        self.roots: list[str] = []
        """The absolute folders of its paths."""
        self.is_remote = False
        """Whether they are on stores."""
        self.classes: list[str] | None = None
        """As declared; None = they are not."""
        self.vocabulary: str | None = None
        """Digest of the tokenizer that made its ids, as declared; None = it is not."""
        try:
            self.data = read_file(path)
        except OSError as error:
            raise ManifestError(f"The manifest {path} cannot be read: {error.strerror or error}") from error
        self.buffer = np.frombuffer(self.data, dtype=np.uint8)

        self.starts, self.ends = self._find_lines()
        self.first_line = self._read_header(columns, problems)
        self._tabs = find_byte(self.buffer, _TAB)
        self._first_tabs = np.searchsorted(self._tabs, self.starts)
        self.num_tabs = np.searchsorted(self._tabs, self.ends) - self._first_tabs
        self.path_ends, self.offsets, self.sizes = self._find_byte_ranges()

    def __len__(self) -> int:
        return len(self.starts)

    def field(self, column: str, row: int) -> str | None:
        """A field as it is written; None where the row has none."""
        if column not in self.names:
            return None
        index = self.names.index(column)
        first, count = self._first_tabs[row], self.num_tabs[row]
        if index > count:
            return None
        start = self.starts[row] if index == 0 else self._tabs[first + index - 1] + 1
        end = self.ends[row] if index == count else self._tabs[first + index]

        return decode(self.data[start:end]) or None

    def bounds(self, column: str) -> tuple[IntArray, IntArray]:
        """(R,) starts and ends of a column; empty where a row does not have it."""
        index = self.names.index(column)
        starts = self.starts if index == 0 else np.where(self.num_tabs >= index, self._tab(index - 1) + 1, self.ends)
        ends = np.where(self.num_tabs > index, self._tab(index), self.ends)
        return starts, np.maximum(starts, ends)

    def numbers(self, column: str) -> IntArray:
        """(R,) a column of numbers; -1 where a row has none."""
        if column not in self.names:
            return np.full(len(self), -1, dtype=np.int64)
        starts, ends = self.bounds(column)
        return parse_numbers(self.buffer, starts, ends, ends > starts)

    def walk(self, starts: IntArray, ends: IntArray) -> Iterator[tuple[int, bytes]]:
        """Yield (row, bytes) for all rows; by chunks, since a list of a million Python numbers is large."""
        for first in range(0, len(starts), _CHUNK):
            chunk = zip(starts[first : first + _CHUNK].tolist(), ends[first : first + _CHUNK].tolist(), strict=True)
            for row, (start, end) in enumerate(chunk, first):
                yield row, self.data[start:end]

    def distinct_files(self, among: BoolArray) -> dict[bytes, IntArray]:
        """The rows of each file that some of the rows (R,) name."""
        rows: dict[bytes, list[int]] = {}
        chosen = np.flatnonzero(among)
        for index, name in self.walk(self.starts[chosen], self.path_ends[chosen]):
            rows.setdefault(name, []).append(index)
        return {name: chosen[indices] for name, indices in rows.items()}

    def rows_with(self, pattern: bytes) -> list[int]:
        """Rows in which a rare pattern occurs."""
        found, position = [], -1
        while (position := self.data.find(pattern, position + 1)) >= 0:
            row = int(np.searchsorted(self.starts, position, side="right")) - 1
            if row >= 0:
                found.append(row)
                position = int(self.ends[row])
        return found

    def file_of(self, name: bytes) -> str:
        """The absolute path or the address of a file; what is already one stays as it is."""
        if self.is_remote:
            text = os.fsdecode(name)
            return text if "://" in text and is_url(text) else f"{self.roots[0]}/{text}"
        return os.path.join(self.roots[0], os.fsdecode(name)) if self.roots else os.fsdecode(name)

    def _find_lines(self) -> tuple[IntArray, IntArray]:
        """Find where each line starts and ends; a byte order mark and carriage returns are not part of it."""
        buffer = self.buffer
        ends = find_byte(buffer, _NEWLINE)
        if len(buffer) and buffer[-1] != _NEWLINE:
            ends = np.append(ends, len(buffer))
        starts = np.empty_like(ends)
        if len(starts):
            starts[0] = 3 if self.data[:3] == b"\xef\xbb\xbf" else 0
            starts[1:] = ends[:-1] + 1
        returned = ends > starts
        returned[returned] = buffer[ends[returned] - 1] == _RETURN

        return starts, ends - returned

    def _read_header(self, columns: Columns, problems: Problems) -> int:
        """Read the line of roots and the declarations below it, and take them off the rows.

        :returns: the line of the first row, counted from 1.
        """
        if not len(self.starts):
            problems.add(self.path, 1, "the file is empty; its first line must be the root folder of the paths below it")
            return 1
        for line in range(len(self.starts)):
            fields = decode(self.data[self.starts[line] : self.ends[line]]).split("\t")
            if line == 0:
                if any("\0" in root for root in fields):
                    problems.add(self.path, 1, "the root has a NUL; it must be the folder of the paths below it")
                self.roots = [_join_root(self.path.parent, root.replace("\0", "")) for root in fields]
                self.is_remote = any(map(is_url, self.roots))
                if self.is_remote and not all(map(is_url, self.roots)):
                    problems.add(self.path, 1, "some roots are on a store and some are local; split the manifest")
            elif fields[0] == "#columns":
                self._declare_columns(fields[1:], columns, line + 1, problems)
            elif fields[0] == "#classes":
                self.classes = fields[1:]
                if not is_utf8(self.data[self.starts[line] : self.ends[line]]):
                    problems.add(self.path, line + 1, "a class is no UTF-8")
            elif fields[0] == "#vocabulary":
                self.vocabulary = "".join(fields[1:])
            else:
                break
        else:
            line += 1
        self.starts, self.ends = self.starts[line:], self.ends[line:]
        if not len(self.starts):
            problems.add(self.path, line, "there are no samples, only the header")

        return line + 1

    def _declare_columns(self, names: list[str], columns: Columns, line: int, problems: Problems) -> None:
        known = ", ".join(columns.names)
        if wrong := [name for name in names if name not in columns.names]:
            problems.add(self.path, line, f"unknown column(s) {', '.join(wrong)}; known are: {known}")
        elif names[:1] != ["path"] or len(set(names)) < len(names):
            problems.add(self.path, line, "`path` must be the first column, and no column may repeat")
        elif missing := [name for name in columns.required if name not in names]:
            problems.add(self.path, line, f"column(s) {', '.join(missing)} are missing")
        else:
            self.names = names
            self.num_required = 1 + max(names.index(name) for name in columns.required)

    def _tab(self, index: int) -> IntArray:
        """(R,) position of the ``index``-th tab of each row; meaningless where there is none."""
        if not len(self._tabs):
            return self.ends
        return self._tabs[np.minimum(self._first_tabs + index, len(self._tabs) - 1)]

    def _find_byte_ranges(self) -> tuple[IntArray, IntArray, IntArray]:
        """Split ``path:offset:size``; a colon that is not followed by numbers belongs to the file name.

        :returns: (R,) where the name of the file ends, offsets, and sizes, which are -1 for whole files.
        """
        starts, ends = self.bounds("path")
        colons = find_byte(self.buffer, _COLON)
        if len(colons) < 2:
            return ends, np.zeros(len(starts), dtype=np.int64), np.full(len(starts), -1, dtype=np.int64)
        last = np.maximum(np.searchsorted(colons, ends) - 1, 1)
        first_colons, second_colons = colons[last - 1], colons[last]
        inside = (first_colons > starts) & (second_colons < ends)
        offsets = parse_numbers(self.buffer, first_colons + 1, second_colons, inside)
        sizes = parse_numbers(self.buffer, second_colons + 1, ends, inside)
        ranged = inside & (offsets >= 0) & (sizes >= 0)

        return np.where(ranged, first_colons, ends), np.where(ranged, offsets, 0), np.where(ranged, sizes, -1)


def _join_root(folder: Path, root: str) -> str:
    """The absolute folder of a root that is relative to the manifest's, or an address."""
    if is_url(root):
        return str(place(root))
    if not is_url(folder):
        return os.path.abspath(folder / root)
    return str(place(posixpath.normpath(f"{folder}/{root}")))


def is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def decode(text: bytes) -> str:
    return text.decode("utf-8", errors="surrogateescape")
