"""Manifests: one TSV file per split that says where the samples lie and what is known of them.

``manifests/README.md`` documents the format. A manifest of millions of rows must open in a second or two and stay small, so
the file stays one run of bytes, only the positions of its fields are kept (found by NumPy), and a row is read when it is needed.
What a row can be wrong about is checked at once, for all rows, when the manifest is opened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from d2v_plugin.data.files import Location
from d2v_plugin.data.labels import sort_labels
from d2v_plugin.data.manifest_checks import check_rows
from d2v_plugin.data.manifest_text import Columns, ManifestText, decode
from d2v_plugin.data.problems import ManifestError, Problems
from d2v_plugin.data.tsv_scan import IntArray

UNFINISHED_FILE: Final = "unfinished.txt"
"""There while the manifests of a folder are replaced, or after that was cut short."""


def check_finished(folder: Path) -> None:
    """:raises ManifestError: the folder was left by an update that did not end."""
    if (folder / UNFINISHED_FILE).exists():
        raise ManifestError(
            f"{folder / UNFINISHED_FILE} is there: `fairseq2 recipe manifest` was stopped while it replaced the manifests, which "
            "may not belong together; run it again."
        )


class Manifest:
    """The samples of one split."""

    def __init__(self, path: Path, columns: Columns, problems: Problems, *, check_files: bool = True) -> None:
        """Open and check a manifest; what is wrong with it is added to ``problems``.

        :param check_files: look for every file (archives: for every byte range too).
        """
        self.path = path
        self._text = ManifestText(path, columns, problems)
        self.roots = self._text.roots
        """The folders that hold the files."""
        self.declared_classes = self._text.classes
        """The classes of ``#classes``; None = it does not declare any."""
        self.declared_vocabulary = self._text.vocabulary
        """The digest of ``#vocabulary``; None = it does not declare any."""
        self._integers = {name: self._text.numbers(name) for name in columns.integers if name in self._text.names}
        check_rows(self._text, self._integers, problems, check_files=check_files)

    def __len__(self) -> int:
        return len(self._text)

    @property
    def bounds(self) -> IntArray:
        """(datasets + 1,) the first row of each dataset that it is joined of, and the number of all."""
        return np.array([0, len(self)])

    def hash_rows(self) -> str:
        """The SHA-256 of all but the first line, the roots: files may be moved, together with their manifest."""
        data = memoryview(self._text.data)
        return hashlib.sha256(data[self._text.data.find(b"\n") + 1 :]).hexdigest()

    def location(self, row: int) -> Location:
        """The place of the bytes of a sample."""
        text = self._text
        path = text.file_of(text.data[text.starts[row] : text.path_ends[row]])
        return Location(path) if text.sizes[row] < 0 else Location(path, int(text.offsets[row]), int(text.sizes[row]))

    @property
    def to_fetch(self) -> Callable[[int], Location] | None:
        """The place of a row, for readers that ask a store ahead; None = the files are local."""
        return self.location if self._text.is_remote else None

    def place_of(self, row: int) -> tuple[Path, int]:
        """The file and the line a row stands on, counted from 1."""
        return self.path, self._text.first_line + row

    def file_of(self, row: int) -> Path:
        """The file a row stands in."""
        return self.place_of(row)[0]

    def name_of(self, row: int) -> str:
        """Line and location of a row, as reports name it."""
        return f"{self.place_of(row)[1]}: {self.location(row)}"

    def text(self, column: str, row: int) -> str | None:
        """A field as it is written; None where the row has none."""
        return self._text.field(column, row)

    def integers(self, column: str) -> IntArray:
        """(rows,) a column of numbers; -1 where the row has none."""
        return self._integers[column] if column in self._integers else self._text.numbers(column)

    def distinct(self, column: str) -> list[str]:
        """The different values of a column, sorted: as numbers if all of them are."""
        if column not in self._text.names:
            return []
        values = {value for _, value in self._text.walk(*self._text.bounds(column))}
        return sort_labels(decode(value) for value in values if value)
