"""Walking through folders: every file once, links followed, what is left out named."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from fairseq2.recipe.error import RecipeError

from d2v_plugin.core.remote import RemotePath
from d2v_plugin.data.files import check_regular
from d2v_plugin.data.preparation.common import Report, make_printable

_NUM_LISTED = 20
_Identity = tuple[int, int]


def walk(roots: Sequence[Path], report: Report) -> Iterator[tuple[Path, str]]:
    """Find all files below the roots: (root, path below it), sorted within each root.

    A file or folder that several names lead to, by links or since roots overlap, is taken once, so that no file can be in two
    splits. Names without links on their way come first: a link that is added later renames nothing. Names that begin with a
    point are left out and counted; what cannot be read is dropped in the report.

    :param roots: absolute; a root that is a file is found as its own name.
    """
    walker = _Walker(report)
    for root in roots:
        if isinstance(root, RemotePath):
            walker.enter_store(root)
        else:
            walker.enter(root)
    walker.follow_links()
    for found in walker.files.values():
        yield from sorted(found)
    if walker.followed:
        more = ["…"] if len(walker.followed) > _NUM_LISTED else []
        report.facts["links to folders that were followed"] = [*map(make_printable, walker.followed[:_NUM_LISTED]), *more]
    if walker.num_hidden:
        report.facts["names that begin with a point, not read"] = walker.num_hidden


class _Walker:
    def __init__(self, report: Report) -> None:
        self.files: dict[Path, list[tuple[Path, str]]] = {}
        """What was found, by root."""
        self.followed: list[str] = []
        """Links that lead to folders."""
        self.num_hidden = 0
        self._report = report
        self._links: deque[tuple[Path, str]] = deque()
        self._seen: dict[_Identity, Path] = {}
        """The first name of each folder and file."""

    def enter(self, root: Path) -> None:
        """Find what is below a root without following links, or a root that is a file itself."""
        self.files.setdefault(root, [])
        if os.path.isdir(root):
            self._scan(root, "")
        else:
            self._add(root, root.parent, root.name)

    def enter_store(self, root: RemotePath) -> None:
        """Find what is below a root on a store, or the object that it is.

        :raises RecipeError: there is no such thing.
        """
        try:
            names = list(root.find_files()) or [""] * root.is_file()
            if names == [""]:
                root, names = root.parent, [root.name]
        except OSError as ex:
            raise RecipeError(f"{ex.filename}: {ex.strerror}.") from None
        if not names:
            raise RecipeError(f"{root}: no such object, and no folder that holds any.")
        shown = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
        self.num_hidden += len(names) - len(shown)
        known = self.files.setdefault(root, [])
        known += [(root, name) for name in shown if (root, name) not in known]

    def follow_links(self) -> None:
        """Find what is behind links, and behind links that are found there."""
        while self._links:
            root, name = self._links.popleft()
            path = root / name
            if not os.path.isdir(path):
                self._add(root, root, name)
            elif _leads_up(path):
                self._report.drop(name, "the link leads back to a folder above it")
            else:
                self.followed.append(name)
                self._scan(root, name)

    def _scan(self, root: Path, name: str) -> None:
        waiting = [name]
        while waiting:
            name = waiting.pop()
            try:
                if self._is_known(root / name, name):
                    continue
                with os.scandir(root / name) as listed:
                    entries = sorted(listed, key=lambda entry: entry.name)
            except OSError as error:
                self._report.drop(name or str(root), f"the folder cannot be read: {error.strerror or error}")
                continue
            for entry in entries:
                below = os.path.join(name, entry.name)
                if entry.name.startswith("."):
                    self.num_hidden += 1
                elif entry.is_symlink():
                    self._links.append((root, below))
                elif entry.is_dir():
                    waiting.append(below)
                else:
                    self._add(root, root, below)

    def _add(self, root: Path, folder: Path, name: str) -> None:
        try:
            check_regular(folder / name)
            if not self._is_known(folder / name, name):
                self.files[root].append((folder, name))
        except OSError as error:
            self._report.drop(name, f"it is no file that can be read: {error.strerror or error}")

    def _is_known(self, path: Path, name: str) -> bool:
        first = self._seen.setdefault(_identify(path), path)
        if first is not path:
            self._report.drop(name or str(path), f"it was found by another name: {first}")
        return first is not path


def _identify(path: Path) -> _Identity:
    """What is the same for all names of a file or folder."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _leads_up(link: Path) -> bool:
    """Tell if a link leads to a folder that it lies in, by its own name or by the real one."""
    above = {*link.parents, *link.parent.resolve().parents, link.parent.resolve()}
    return _identify(link) in {_identify(folder) for folder in above}
