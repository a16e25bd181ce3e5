"""Mistakes in the files of a dataset, collected so that they can be said at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fairseq2.recipe.error import RecipeError

_NUM_LISTED = 20


class ManifestError(RecipeError):
    """Lists everything that is wrong with the manifests of a dataset, with file and line numbers."""


@dataclass
class Problems:
    """Bad lines of any number of files."""

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
