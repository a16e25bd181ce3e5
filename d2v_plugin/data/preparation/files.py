"""Audio and images: from folders of files to manifests, as loose files or packed into shards."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypedDict

from fairseq2.recipe.error import RecipeError
from typing_extensions import NotRequired, Unpack

from d2v_plugin.data.bad_samples import SampleError
from d2v_plugin.data.preparation.cache import InspectionCache, read_stamp
from d2v_plugin.data.preparation.common import (
    TRAIN,
    VALID,
    Report,
    choose_split,
    refuse_empty_splits,
    work_in_parallel,
    write_manifest,
)
from d2v_plugin.data.preparation.packing import pack

FOLDERS = "folders"


@dataclass(frozen=True)
class FoundFile:
    """A file that was found."""

    root: Path
    """The folder, as given by the user, absolute."""

    name: str
    """Its path below that."""

    label: str | None = None

    @property
    def path(self) -> Path:
        return self.root / self.name


Rows = list[dict[str, object]]


@dataclass
class Inspected:
    """A file that can be used: what its rows say besides path and label, and what the report counts. All of it fits into JSON."""

    rows: Rows
    """The fields of each row it gives; several if it is cut into segments."""

    facts: dict[str, object] = field(default_factory=dict)
    """Values to count in the report, by name: sample rate, size in pixels, …"""

    totals: dict[str, float] = field(default_factory=dict)
    """Values to add up for each split: hours, pixels, …"""

    sums: dict[str, int] = field(default_factory=dict)
    """Whole numbers to add up over all files, exactly."""


Inspect = Callable[[FoundFile], Inspected]


class FileOptions(TypedDict):
    """Options of preparing files of any kind."""

    valid_percent: float
    """Share of the files to hold out."""

    seed: int
    """Another one holds out other files."""

    shard_size: int | None
    """Bytes of the archives to pack into; None = leave files where they are."""

    workers: int | None
    """Threads; None = one for each processor."""

    reread: NotRequired[bool]
    """Also read what the last run into the same folder has read, and what has not changed since."""


def find_files(roots: Sequence[Path], suffixes: Collection[str], labels: str | None, report: Report) -> list[FoundFile]:
    """Find all files with one of ``suffixes`` below the roots, sorted.

    :param labels: a file of lines ``path<TAB>label``, or ``folders``: the first folder below the root is the class.
    :raises RecipeError: a root is no folder, or the file of labels cannot be used.
    """
    table = _read_labels(Path(labels)) if labels is not None and labels != FOLDERS else None
    found: list[FoundFile] = []
    for root in roots:
        if not root.is_dir():
            raise RecipeError(f"{root} is no folder.")
        for path in sorted(_walk(root.absolute())):
            name = os.path.relpath(path, root.absolute())
            if "\t" in name or "\n" in name:
                report.dropped.append((repr(name), "the name has a tab or a line break"))
            elif Path(name).suffix.lower() not in suffixes:
                report.dropped.append((name, f"the kind `{Path(name).suffix}` is not read"))
            elif labels == FOLDERS:
                folder, _, rest = name.partition("/")
                found.append(FoundFile(root.absolute(), name, folder if rest else None))
            else:
                found.append(FoundFile(root.absolute(), name, None if table is None else table.get(name)))
    if labels is not None and (unlabelled := [source for source in found if source.label is None]):
        report.dropped += [(source.name, "it has no label") for source in unlabelled]
        found = [source for source in found if source.label is not None]

    return found


def _walk(folder: Path) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(parent, name) for name in files if not name.startswith("."))


def _read_labels(path: Path) -> Mapping[str, str]:
    labels = {}
    try:
        lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError as error:
        raise RecipeError(f"`--labels` must be `folders` or a readable file: {error}") from None
    for number, line in enumerate(lines, 1):
        name, tab, label = line.partition("\t")
        if not tab or not label or "\t" in label:
            raise RecipeError(f"{path}:{number}: a line must be a path, a tab and a label.")
        labels[name] = label

    return labels


def prepare_files(
    sources: Sequence[FoundFile],
    out: Path,
    inspect: Inspect,
    report: Report,
    *,
    settings: Mapping[str, object],
    columns: Sequence[str],
    declare_classes: bool = True,
    **options: Unpack[FileOptions],
) -> Mapping[str, int]:
    """Inspect all files and write manifests, perhaps shards, and the report.

    :param inspect: a function of the file and of ``settings``; not called for files that were usable in the last run and have
        not changed. What was broken then is tried again: it costs little, and the reason may have been a disk or a right.
    :param columns: all columns rows may have, in the order that needs no declaration; those that no row fills are left out.
    :param declare_classes: labels are names of classes, not transcripts.
    :returns: the sums of what was inspected.
    :raises RecipeError: a split would be empty; nothing is written then.
    """
    valid_percent, seed, shard_size = options["valid_percent"], options["seed"], options["shard_size"]
    cache = InspectionCache(out, settings, reread=options.get("reread", False))
    results = work_in_parallel(
        lambda source: _try(inspect, source, cache), sources, workers=options["workers"], title="Inspecting"
    )
    splits, sums = _sort(sources, results, report, valid_percent, seed)
    report.num_kept = cache.count_kept()
    refuse_empty_splits({split: len(found) for split, found in splits.items()}, report, valid_percent)
    report.splits = {split: report.splits[split] for split in splits if splits[split]}

    out.mkdir(parents=True, exist_ok=True)
    labels = {source.label for found in splits.values() for source, _ in found if source.label is not None}
    classes = sorted(labels) if declare_classes else []
    for split, found in splits.items():
        if found:
            places = None
            if shard_size is not None:
                places = pack(split, [(source.name, source.path) for source, _ in found], out, shard_size, cache)
            _write_split(out / f"{split}.tsv", found, places, columns=columns, classes=classes)
    cache.save()
    report.save(out)

    return sums


def _sort(
    sources: Sequence[FoundFile], results: Iterable[Inspected | str], report: Report, valid_percent: float, seed: int
) -> tuple[dict[str, list[tuple[FoundFile, Rows]]], Counter[str]]:
    """Sort files into splits, and count in the report what they are; returns the splits and the sums."""
    splits: dict[str, list[tuple[FoundFile, Rows]]] = {TRAIN: [], VALID: []}
    counts: dict[str, Counter[object]] = {}
    sums: Counter[str] = Counter()
    for source, result in zip(sources, results, strict=True):
        if isinstance(result, str):
            report.dropped.append((source.name, result))
            continue
        split = choose_split(source.name, valid_percent, seed)
        splits[split].append((source, result.rows))
        totals = report.splits.setdefault(split, {"files": 0, "rows": 0})
        for name, value in {"files": 1, "rows": len(result.rows), **result.totals}.items():
            totals[name] = totals.get(name, 0) + value
        for name, fact in result.facts.items():
            counts.setdefault(name, Counter())[fact] += 1
        sums.update(result.sums)
    report.facts |= {name: dict(counter.most_common()) for name, counter in counts.items()}

    return splits, sums


def _try(inspect: Inspect, source: FoundFile, cache: InspectionCache) -> Inspected | str:
    """Inspect a file, unless it is known; returns why it cannot be used instead if it cannot."""
    try:
        stamp = read_stamp(source.path)
        facts = cache.find(source.path, stamp)
        inspected = inspect(source) if facts is None else Inspected(**facts)
    except (SampleError, OSError, RuntimeError, ValueError) as error:
        return " ".join(str(error).split()) or type(error).__name__
    cache.remember(source.path, stamp, asdict(inspected))

    return inspected


def _write_split(
    path: Path,
    found: Sequence[tuple[FoundFile, Rows]],
    places: Sequence[str] | None,
    *,
    columns: Sequence[str],
    classes: Sequence[str],
) -> None:
    """:param places: (found,) where each file lies in shards; None = where it was found."""
    roots = list(dict.fromkeys(str(source.root) for source, _ in found))
    names = places
    if names is None:
        names = [source.name if str(source.root) == roots[0] else str(source.path) for source, _ in found]
    table: Rows = [
        {"path": name, "label": source.label, **row} for name, (source, rows) in zip(names, found, strict=True) for row in rows
    ]
    filled = [column for column in columns if any(row.get(column) is not None for row in table)]
    is_plain = filled == list(columns[: len(filled)])
    fields = [["" if row.get(column) is None else row[column] for column in filled] for row in table]
    write_manifest(path, roots if places is None else ["."], None if is_plain else filled, fields, classes=classes)
