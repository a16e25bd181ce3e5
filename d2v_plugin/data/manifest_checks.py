"""Checks of all rows of a manifest, at once: fields, paths, numbers, classes, files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from d2v_plugin.core.remote import RemotePath
from d2v_plugin.data.manifest_text import ManifestText, is_utf8
from d2v_plugin.data.problems import ManifestError, Problems
from d2v_plugin.data.store_reading import NUM_THREADS
from d2v_plugin.data.tsv_scan import BoolArray, IntArray

(_SLASH,) = b"/"
_MAX_PATH = 4096
_LAST_ASCII = 0x7F
_CHUNK = 1 << 20

_NUM_LOOKED_AT = 100
"""Objects of a store that are no archives; what is missing among the others is found when it is read."""


def check_rows(text: ManifestText, numbers: Mapping[str, IntArray], problems: Problems, *, check_files: bool) -> None:
    """Add what is wrong with each row to ``problems``.

    :param numbers: the columns of numbers, as they were read.
    :param check_files: look for every file (archives: for every byte range too).
    """
    checks = _RowChecks(text, problems)
    checks.check_fields()
    checks.check_paths()
    checks.check_encoding()
    for name, values in numbers.items():
        checks.check_numbers(name, values)
    checks.check_classes()
    if check_files:
        checks.check_files()


class _RowChecks:
    def __init__(self, text: ManifestText, problems: Problems) -> None:
        self._text = text
        self._problems = problems
        self._valid = np.ones(len(text), dtype=bool)

    def _report(self, rows: BoolArray, describe: Callable[[int], str]) -> None:
        """Say what is wrong with rows, once for each row: what is found first is the cause of the rest."""
        rows = rows & self._valid
        self._valid &= ~rows
        for row in np.flatnonzero(rows).tolist():
            self._problems.add(self._text.path, self._text.first_line + row, describe(row))

    def check_fields(self) -> None:
        """Check that no row has too few fields or too many."""
        names, num_tabs = self._text.names, self._text.num_tabs
        wrong = (num_tabs < self._text.num_required - 1) | (num_tabs >= len(names))
        self._report(wrong, lambda row: f"{num_tabs[row] + 1} column(s), expected {', '.join(names)}")

    def check_paths(self) -> None:
        """Check that each path names a file inside a root."""
        text, starts, ends = self._text, self._text.starts, self._text.path_ends
        self._report(ends == starts, lambda row: "the path is empty")
        self._report(ends - starts > _MAX_PATH, lambda row: f"the path is longer than {_MAX_PATH:,} bytes")
        self._report(text.sizes == 0, lambda row: "the byte range is empty")
        if not text.roots:
            return
        suspect = text.buffer[np.minimum(starts, len(text.buffer) - 1)] == _SLASH
        prefixes = tuple(os.fsencode(os.path.join(root, "")) for root in text.roots)
        for row in np.flatnonzero(suspect).tolist():
            suspect[row] = not text.data[starts[row] : ends[row]].startswith(prefixes)
        for pattern in (b"..", b"\0", *([b"://"] if text.is_remote else [])):
            suspect[text.rows_with(pattern)] = True
        escapes = np.zeros_like(suspect)
        for row in np.flatnonzero(suspect):
            name = text.data[starts[row] : ends[row]]
            escapes[row] = b"\0" in name or not _lies_inside(text.file_of(name), text.roots)
            if b".." in name.split(b"/") and not escapes[row] and not text.is_remote:
                # Behind a symbolic link `..` leads elsewhere than it reads.
                real_roots = [os.path.realpath(root) for root in text.roots]
                escapes[row] = not _lies_inside(os.path.realpath(text.file_of(name)), real_roots)
        roots = ", ".join(text.roots)
        self._report(escapes, lambda row: f"{text.field('path', row)!r:.200} lies outside of the root ({roots})")

    def check_encoding(self) -> None:
        """Check that all but paths, which are what the file system says, is UTF-8."""
        wrong = np.zeros(len(self._text), dtype=bool)
        buffer = self._text.buffer
        if not any((buffer[at : at + _CHUNK] > _LAST_ASCII).any() for at in range(0, len(buffer), _CHUNK)):
            return
        for row, line in self._text.walk(self._text.starts, self._text.ends):
            wrong[row] = not (line.isascii() or is_utf8(line.partition(b"\t")[2]))
        self._report(wrong, lambda row: "a field is no UTF-8")

    def check_numbers(self, name: str, values: IntArray) -> None:
        """Check that what stands in a column of numbers is a number, or nothing where that is allowed."""
        text = self._text
        starts, ends = text.bounds(name)
        wrong = (values < 0) & ((ends > starts) | (text.names.index(name) < text.num_required))
        self._report(wrong, lambda row: f"`{name}` must be a number, but is `{text.field(name, row) or ''}`")

    def check_classes(self) -> None:
        """Check that labels are among the declared classes."""
        text = self._text
        if text.classes is None or "label" not in text.names:
            return
        classes = {label.encode("utf-8", errors="surrogateescape") for label in text.classes} | {b""}
        wrong = np.zeros(len(text), dtype=bool)
        for row, label in text.walk(*text.bounds("label")):
            if label not in classes:
                wrong[row] = True
        self._report(wrong, lambda row: f"label `{text.field('label', row)}` is not declared in `#classes`")

    def check_files(self) -> None:
        """Check that files exist, by listing folders rather than by asking for each file, and that archives are long enough."""
        text = self._text
        if text.is_remote:
            self._check_objects()
            return
        listings: dict[bytes, set[bytes]] = {}
        archive_sizes: dict[bytes, int] = {}
        missing = np.zeros(len(text), dtype=bool)
        lengths = np.full(len(text), np.iinfo(np.int64).max)
        ranged, valid = (text.sizes >= 0).tolist(), self._valid.tolist()
        for row, name in text.walk(text.starts, text.path_ends):
            if not valid[row]:
                continue
            if not ranged[row]:
                folder, _, file = name.rpartition(b"/")
                if name.startswith(b"/"):
                    folder = folder or b"/"
                if folder not in listings:
                    listings[folder] = _list_folder(text.file_of(folder))
                missing[row] = file not in listings[folder]
                continue
            if name not in archive_sizes:
                archive_sizes[name] = _file_size(text.file_of(name))
            lengths[row] = archive_sizes[name]
        self._report_missing(missing, lengths)

    def _check_objects(self) -> None:
        """Ask a store for all archives, and for some of the other objects, evenly spread: there may be millions."""
        text = self._text
        ranged = text.sizes >= 0
        archives = text.distinct_files(ranged & self._valid)
        loose = np.flatnonzero(~ranged & self._valid)
        looked_at = loose[np.unique(np.linspace(0, len(loose) - 1, min(len(loose), _NUM_LOOKED_AT)).astype(np.int64))]
        names = [*archives, *(text.data[text.starts[row] : text.path_ends[row]] for row in looked_at)]
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            sizes = list(pool.map(lambda name: _object_size(text.file_of(name)), names))
        lengths = np.full(len(text), np.iinfo(np.int64).max)
        for rows, size in zip([*archives.values(), *looked_at], sizes, strict=True):
            lengths[rows] = size
        self._report_missing(np.zeros(len(text), dtype=bool), lengths)

    def _report_missing(self, missing: BoolArray, lengths: IntArray) -> None:
        """:param lengths: of the archives; -1 = it does not exist."""
        text = self._text
        missing |= lengths < 0
        self._report(missing, lambda row: f"`{self._file(row)}` does not exist")
        short = (text.offsets + np.maximum(text.sizes, 0)) > lengths
        self._report(
            short,
            lambda row: (
                f"`{self._file(row)}:{text.offsets[row]}:{text.sizes[row]}` reaches beyond the end of the file "
                f"({lengths[row]} bytes)"
            ),
        )

    def _file(self, row: int) -> str:
        return self._text.file_of(self._text.data[self._text.starts[row] : self._text.path_ends[row]])


def _lies_inside(path: str, roots: list[str]) -> bool:
    path = os.path.normpath(path)
    return any(root == "/" or path.startswith(os.path.normpath(root) + "/") for root in roots)


def _list_folder(path: str) -> set[bytes]:
    try:
        return set(os.listdir(os.fsencode(path)))
    except OSError:
        return set()


def _object_size(address: str) -> int:
    """:raises ManifestError: the store does not tell."""
    try:
        return RemotePath(address).stat().st_size
    except FileNotFoundError:
        return -1
    except OSError as ex:
        raise ManifestError(f"{ex.filename}: {ex.strerror}.") from None


def _file_size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1
