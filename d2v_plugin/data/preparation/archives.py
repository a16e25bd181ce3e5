"""Tar archives, such as the shards of WebDataset: indexed where they lie, nothing is copied.

A sample is what shares a key: the name of a member up to the first point of its last part. ``0001.flac`` is sound, and beside it
``0001.txt``, ``0001.cls`` or ``0001.json`` say what it is.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from d2v_plugin.data.files import Location, check_regular, read_bytes
from d2v_plugin.data.preparation.cache import read_stamp

SUFFIX: Final = ".tar"
COMPRESSED: Final = re.compile(r"\.(tgz|tbz2?|txz|tar\.(gz|bz2|xz|zst|lz4?))", re.I)
LABELS: Final = re.compile(r"(?P<suffix>txt|cls)|json:(?P<field>.+)")
"""Names of what labels a sample: its member of this suffix, or a field of its JSON."""

_MAX_LABEL: Final = 1 << 20


@dataclass(frozen=True)
class Member:
    """A file in an archive."""

    archive: str
    """The path of the archive below its root."""

    offset: int
    size: int

    stamp: str
    """Of the archive; see :func:`d2v_plugin.data.preparation.cache.read_stamp`."""


def locate(root: Path, member: Member) -> Location:
    """The place of a member's bytes."""
    return Location(str(root / member.archive), member.offset, member.size)


def list_members(root: Path, archive: str) -> Iterator[tuple[str, Member]]:
    """The files of an archive, by their names, in their order.

    :raises OSError: it cannot be read.
    :raises tarfile.TarError: it is no tar, or damaged.
    """
    path = root / archive
    check_regular(path)
    stamp, end = read_stamp(path), path.stat().st_size
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for info in tar:
            if not info.isreg() or info.issparse():
                continue
            if info.offset_data + info.size > end:
                raise tarfile.ReadError(f"it ends within `{info.name}`")
            yield info.name.removeprefix("./"), Member(archive, info.offset_data, info.size, stamp)
            tar.members.clear()  # type: ignore[attr-defined]  # they would all stay


@dataclass
class Sample:
    """The members of one key that are of use here."""

    name: str
    member: Member
    label: Member | None


def list_samples(root: Path, archive: str, suffixes: Collection[str], label_suffix: str | None) -> tuple[list[Sample], list[str]]:
    """Group the members of an archive by their keys.

    :param suffixes: of what is to be read.
    :param label_suffix: such as ``.cls``; None = labels are not wanted.
    :returns: the samples, several where a key has several files to read, and the names of what is neither sample nor label.
    """
    found: dict[str, list[tuple[str, Member]]] = {}
    labels: dict[str, Member] = {}
    others = []
    for name, member in list_members(root, archive):
        folder, slash, last = name.rpartition("/")
        key, _, extension = last.partition(".")
        key, suffix = f"{folder}{slash}{key}", f".{extension.lower()}"
        if Path(name).suffix.lower() in suffixes:
            found.setdefault(key, []).append((name, member))
        elif suffix == label_suffix:
            labels[key] = member
        elif suffix not in (".txt", ".cls", ".json"):
            others.append(name)
    samples = [Sample(name, member, labels.get(key)) for key, files in found.items() for name, member in files]

    return samples, others


def read_label(root: Path, member: Member, field: str | None) -> str:
    """The label that a member holds.

    :param field: of its JSON; None = all of its text.
    :raises ValueError: it holds none.
    :raises OSError: it cannot be read.
    """
    if member.size > _MAX_LABEL:
        raise ValueError(f"its label has {member.size:,} bytes")
    text = read_bytes(locate(root, member)).decode()
    if field is not None:
        content = json.loads(text)
        value = content.get(field) if isinstance(content, dict) else None
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise ValueError(f"its JSON has no text or number `{field}`")
        text = str(value)
    label = " ".join(text.split())
    if not label:
        raise ValueError("its label is empty")
    return label


def find_label_suffix(labels: str | None) -> tuple[str | None, str | None]:
    """The suffix of the members that hold labels, and a field of their JSON, of a word of the command line."""
    found = LABELS.fullmatch(labels or "")
    if found is None:
        return None, None
    return (f".{found['suffix']}", None) if found["suffix"] else (".json", found["field"])
