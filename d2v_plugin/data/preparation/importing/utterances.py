"""What the manifests of other toolkits have in common: utterances, and the lines and values that say what they are."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fairseq2.recipe.error import RecipeError

from d2v_plugin.data.lines import decode_line, read_lines, split_lines
from d2v_plugin.data.preparation.common import Report
from d2v_plugin.data.problems import Problems

TEXT: Final = "text"
"""The field that holds what is said."""

SPEAKER: Final = "speaker"
"""The field that holds who says it."""


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """A recording, or a segment of one."""

    name: str
    """As the toolkit calls it."""

    file: Path
    """The recording; relative to where the program was started, or absolute."""

    bytes: tuple[int, int] | None = None
    """Offset and size within an archive; None = the whole file."""

    segment: tuple[float, float | None] | None = None
    """Start and length in seconds; a length of None reaches to the end. None = the whole recording."""

    fields: Mapping[str, str] = field(default_factory=dict)
    """What else is said of it: ``text``, ``speaker`` and others that may serve as labels."""


class Source:
    """Something to import, while it is read."""

    def __init__(self, path: Path, report: Report) -> None:
        self.path = path
        self.report = report
        self.problems = Problems()
        """Lines that mean nothing; they end the import."""

    def drop(self, name: str, reason: str) -> None:
        """Leave out what means something that a manifest of ours cannot say."""
        self.report.drop(name, reason)

    def read_table(self, path: Path) -> dict[str, tuple[str, int]]:
        """Lines of a key and, behind a space or a tab, a value that may be empty: values and numbers of lines, by key."""
        table: dict[str, tuple[str, int]] = {}
        for number, line in enumerate(read_lines(path, self.problems), 1):
            key, _, value = line.replace("\t", " ").partition(" ")
            if not key:
                self.problems.add(path, number, "the line must begin with a name")
            elif key in table:
                self.problems.add(path, number, f"`{key}` stands on line {table[key][1]}, too")
            table.setdefault(key, (value.strip(), number))
        return table

    def read_objects(self, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        """The objects of JSON lines, perhaps gzipped, and the numbers of their lines."""
        for number, line in enumerate(split_lines(_read(path)), 1):
            if not line.strip():
                continue
            try:
                content = json.loads(decode_line(line, path, number, self.problems))
            except (ValueError, RecursionError) as error:
                self.problems.add(path, number, f"the line is no JSON: {error}")
                continue
            if isinstance(content, dict):
                yield number, content
            else:
                self.problems.add(path, number, "the line is no object of JSON")

    def seconds(self, value: object, what: str, path: Path, number: int) -> float | None:
        """A time of 0 or more; None = it is none, which is added to the problems."""
        try:
            found = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            found = math.nan
        if math.isfinite(found) and found >= 0.0:
            return found
        self.problems.add(path, number, f"`{what}` must be a number of seconds of 0 or more, but is `{value}`")
        return None


ONE_CHANNEL: Final = "one channel of several is chosen, but ours are averaged"
"""Why an utterance is dropped."""


def find_base(manifest: Path, name: str) -> Path | None:
    """The folder that a relative path belongs to: that where a recipe was run, which is this one, or one above the manifest."""
    return next((base for base in (Path(), *manifest.absolute().parents) if (base / name).exists()), None)


def texts_of(content: Mapping[str, Any]) -> dict[str, str]:
    """The fields of an object that are text or whole numbers."""
    return {name: str(value) for name, value in content.items() if isinstance(value, str | int) and not isinstance(value, bool)}


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise RecipeError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
