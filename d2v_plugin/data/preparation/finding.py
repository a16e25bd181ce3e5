"""The files of a dataset, with their labels."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fairseq2.recipe.error import RecipeError

from d2v_plugin.core.remote import RemotePath, place
from d2v_plugin.data.files import Location
from d2v_plugin.data.preparation.archives import COMPRESSED, SUFFIX, find_label_suffix, list_samples, locate, read_label
from d2v_plugin.data.preparation.common import Report
from d2v_plugin.data.preparation.grouping import read_table
from d2v_plugin.data.preparation.walking import walk
from d2v_plugin.data.store_reading import store_reader

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
    """What it is called elsewhere, or in its archive; empty = by its name."""

    unit: str = ""
    """What is never divided between splits; empty = its file."""

    listed_in: Path | None = None
    """The source that lists it, where that is not ``root``."""

    segment: tuple[float, float | None] | None = None
    """Start and length in seconds; a length of None reaches to the end. None = the whole recording."""

    bytes: tuple[int, int] | None = None
    """Offset and size within an archive; None = the whole file."""

    stamp: str = ""
    """Of its archive, when that was listed, as :func:`d2v_plugin.data.preparation.cache.read_stamp` says; empty = not listed."""

    @property
    def path(self) -> Path:
        return self.root / self.name

    @property
    def location(self) -> Location:
        """The place of its bytes."""
        return Location(str(self.path), *(self.bytes or ()))

    @property
    def called(self) -> str:
        """Its name for people."""
        return self.title or self.name

    @property
    def key(self) -> str:
        """What tells it from all others; the path of a whole file."""
        part = "" if self.segment is None else f"#{self.segment[0]!r}+{self.segment[1]!r}"
        return f"{self.location}{part}"

    def name_in(self, root: str) -> str:
        """As a manifest names it whose first root is ``root``."""
        return str(self.location if str(self.root) != root else replace(self.location, path=self.name))


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
        if not (isinstance(root, RemotePath) or os.path.isdir(root) or (root.suffix == SUFFIX and root.is_file())):
            raise RecipeError(f"{root} is no folder, and no tar archive.")
        if any(separator in str(root.absolute()) for separator in _SEPARATORS):
            raise RecipeError(f"{str(root)!r}: a manifest cannot name a folder with a tab or a line break; rename it.")
    label_suffix, field = find_label_suffix(labels)
    is_table = labels is not None and labels != FOLDERS and label_suffix is None
    table = read_table(place(labels), "label") if is_table and labels is not None else None
    found: list[FoundFile] = []
    unused = dict.fromkeys(table or ())
    for root, name in walk([root.absolute() for root in roots], report):
        if name.endswith(SUFFIX) and not any(separator in name for separator in _SEPARATORS):
            for source in _open_archive(root, name, suffixes, label_suffix, field, report):
                unused.pop(source.title, None)
                label = source.label if table is None else table.get(source.title)
                if labels == FOLDERS:
                    folder, _, rest = source.title.removeprefix(f"{name}/").partition("/")
                    label = folder if rest else None
                found.append(replace(source, label=label))
            continue
        unused.pop(name, None)
        if any(separator in name for separator in _SEPARATORS):
            report.drop(repr(name), "the name has a tab or a line break")
        elif COMPRESSED.search(name):
            report.drop(name, "a compressed archive has no ranges to read; write it as a plain tar")
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
            report.drop(source.called, f"it has no {label_name}")
        elif not _is_utf8(source.label):
            report.drop(source.called, f"the {label_name} is no UTF-8")
        else:
            kept.append(source)

    return kept


def _open_archive(
    root: Path, archive: str, suffixes: Collection[str], label_suffix: str | None, field: str | None, report: Report
) -> Iterator[FoundFile]:
    """The samples of a tar archive; what is wrong with it, or in it, is dropped in the report."""
    try:
        samples, others = list_samples(root, archive, suffixes, label_suffix)
    except (OSError, tarfile.TarError) as ex:
        report.drop(archive, f"the archive cannot be read: {getattr(ex, 'strerror', None) or ex}")
        return
    if isinstance(root, RemotePath):
        store_reader().request(locate(root, sample.label) for sample in samples if sample.label is not None)
    for name in others:
        report.drop(f"{archive}/{name}", f"the kind `{Path(name).suffix}` is not read")
    for sample in samples:
        title, label, member = f"{archive}/{sample.name}", None, sample.member
        if any(separator in sample.name for separator in _SEPARATORS):
            report.drop(repr(title), "the name has a tab or a line break")
            continue
        if sample.label is not None:
            try:
                label = read_label(root, sample.label, field)
            except (OSError, ValueError) as ex:
                report.drop(title, f"the label cannot be read: {ex}")
                continue
        place = member.offset, member.size
        yield FoundFile(root, archive, label, title=title, unit=title, bytes=place, stamp=member.stamp)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
