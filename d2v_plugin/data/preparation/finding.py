"""The files of a dataset, with their labels."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fairseq2.recipe.error import RecipeError

from d2v_plugin.data.files import Location
from d2v_plugin.data.preparation.common import Report
from d2v_plugin.data.preparation.grouping import read_table
from d2v_plugin.data.preparation.walking import walk

FOLDERS = "folders"
_SEPARATORS = "\t\n\r"


@dataclass(frozen=True)
class FoundFile:
    """A file that was found, or the part of one that another toolkit's manifest names."""

    root: Path
    """The folder, as given by the user, absolute."""

    name: str
    """Its path below that."""

    label: str | None = None

    speaker: str | None = None

    title: str = ""
    """What it is called elsewhere; empty = by its name."""

    unit: str = ""
    """What is never divided between splits; empty = its file."""

    listed_in: Path | None = None
    """The source that lists it, where that is not ``root``."""

    segment: tuple[float, float | None] | None = None
    """Start and length in seconds; a length of None reaches to the end. None = the whole recording."""

    bytes: tuple[int, int] | None = None
    """Offset and size within an archive; None = the whole file."""

    @property
    def path(self) -> Path:
        return self.root / self.name

    @property
    def location(self) -> Location:
        return Location(str(self.path), *(self.bytes or ()))

    @property
    def key(self) -> Path:
        """What tells it from all others; the path of a whole file."""
        part = "" if self.segment is None else f"#{self.segment[0]!r}+{self.segment[1]!r}"
        return Path(f"{self.location}{part}")


def move_root(files: Sequence[FoundFile]) -> list[FoundFile]:
    """Name files below the folder that all of them have in common."""
    if not files:
        return []
    root = Path(os.path.commonpath([file.path.parent for file in files]))
    return [replace(file, root=root, name=str(file.path.relative_to(root))) for file in files]


def find_files(
    roots: Sequence[Path], suffixes: Collection[str], labels: str | None, report: Report, *, label_name: str = "label"
) -> list[FoundFile]:
    """Find all files with one of ``suffixes`` below the roots, sorted; see :func:`~d2v_plugin.data.preparation.walking.walk`.

    :param labels: a file of lines ``path<TAB>label``, or ``folders``: the first folder below the root is the class.
    :param label_name: how the report calls labels.
    :raises RecipeError: a root cannot be used, or the file of labels cannot be read.
    :raises ManifestError: lines of that file are wrong; names them all.
    """
    for root in roots:
        if not os.path.isdir(root):
            raise RecipeError(f"{root} is no folder.")
        if any(separator in str(root.absolute()) for separator in _SEPARATORS):
            raise RecipeError(f"{str(root)!r}: a manifest cannot name a folder with a tab or a line break; rename it.")
    table = read_table(Path(labels), "label") if labels is not None and labels != FOLDERS else None
    found: list[FoundFile] = []
    unused = dict.fromkeys(table or ())
    for root, name in walk([root.absolute() for root in roots], report):
        unused.pop(name, None)
        if any(separator in name for separator in _SEPARATORS):
            report.drop(repr(name), "the name has a tab or a line break")
        elif Path(name).suffix.lower() not in suffixes:
            report.drop(name, f"the kind `{Path(name).suffix}` is not read")
        elif labels == FOLDERS:
            folder, _, rest = name.partition("/")
            found.append(FoundFile(root, name, folder if rest else None))
        else:
            found.append(FoundFile(root, name, None if table is None else table.get(name)))
    for name in unused:
        report.drop(name, f"there is a {label_name}, but no such file below the folders given")
    if labels is None:
        return found
    kept = []
    for source in found:
        if source.label is None:
            report.drop(source.name, f"it has no {label_name}")
        elif not _is_utf8(source.label):
            report.drop(source.name, f"the {label_name} is no UTF-8")
        else:
            kept.append(source)

    return kept


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
