"""Audio and images: from folders of files to manifests, as loose files or packed into shards."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fairseq2.recipe.error import RecipeError

from d2v_plugin.data.bad_samples import SampleError
from d2v_plugin.data.preparation.common import (
    TRAIN,
    VALID,
    Report,
    choose_split,
    refuse_empty_splits,
    work_in_parallel,
    write_manifest,
)
from d2v_plugin.data.shards import ShardWriter

FOLDERS = "folders"


@dataclass(frozen=True)
class Source:
    """A file that was found."""

    root: Path
    """The folder, as given by the user, absolute."""

    name: str
    """Its path below that."""

    label: str | None = None

    @property
    def path(self) -> Path:
        return self.root / self.name


@dataclass
class Inspected:
    """A file that can be used: what its rows say besides path and label, and what the report counts."""

    rows: list[dict[str, object]]
    """The fields of each row it gives; several if it is cut into segments."""

    facts: dict[str, object] = field(default_factory=dict)
    """Values to count in the report, by name: sample rate, size in pixels, …"""

    totals: dict[str, float] = field(default_factory=dict)
    """Values to add up for each split: hours, pixels, …"""


Inspect = Callable[[Source], Inspected]


def find_files(roots: Sequence[Path], suffixes: Collection[str], labels: str | None, report: Report) -> list[Source]:
    """Find all files with one of ``suffixes`` below the roots, sorted.

    :param labels: a file of lines ``path<TAB>label``, or ``folders``: the first folder below the root is the class.
    :raises RecipeError: a root is no folder, or the file of labels cannot be used.
    """
    table = _read_labels(Path(labels)) if labels is not None and labels != FOLDERS else None
    found: list[Source] = []
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
                found.append(Source(root.absolute(), name, folder if rest else None))
            else:
                found.append(Source(root.absolute(), name, None if table is None else table.get(name)))
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
    sources: Sequence[Source],
    out: Path,
    inspect: Inspect,
    report: Report,
    *,
    columns: Sequence[str],
    plain: Sequence[str],
    valid_percent: float,
    seed: int,
    shard_size: int | None,
    workers: int | None,
    declare_classes: bool = True,
) -> None:
    """Inspect all files and write manifests, perhaps shards, and the report.

    :param columns: all columns rows may have, in the order to write them; those that no row fills are left out.
    :param plain: the columns a manifest has when it declares none.
    :param declare_classes: labels are names of classes, not transcripts.
    :raises RecipeError: a split would be empty; nothing is written then.
    """
    splits: dict[str, list[tuple[Source, Inspected]]] = {TRAIN: [], VALID: []}
    counts: dict[str, Counter[object]] = {}
    results = work_in_parallel(lambda source: _try(inspect, source), sources, workers=workers, title="Inspecting")
    for source, result in zip(sources, results, strict=True):
        if isinstance(result, str):
            report.dropped.append((source.name, result))
            continue
        split = choose_split(source.name, valid_percent, seed)
        splits[split].append((source, result))
        totals = report.splits.setdefault(split, {"files": 0, "rows": 0})
        for name, value in {"files": 1, "rows": len(result.rows), **result.totals}.items():
            totals[name] = totals.get(name, 0) + value
        for name, fact in result.facts.items():
            counts.setdefault(name, Counter())[fact] += 1
    refuse_empty_splits({split: len(found) for split, found in splits.items()}, report, valid_percent)
    report.splits = {split: report.splits[split] for split in splits if splits[split]}
    report.facts |= {name: dict(counter.most_common()) for name, counter in counts.items()}

    out.mkdir(parents=True, exist_ok=True)
    labels = {source.label for found in splits.values() for source, _ in found if source.label is not None}
    classes = sorted(labels) if declare_classes else []
    for split, found in splits.items():
        if found:
            _write_split(split, found, out, columns=columns, plain=plain, shard_size=shard_size, classes=classes)
    report.save(out)


def _try(inspect: Inspect, source: Source) -> Inspected | str:
    """What was found, or why the file cannot be used."""
    try:
        return inspect(source)
    except (SampleError, OSError, RuntimeError, ValueError) as error:
        return " ".join(str(error).split()) or type(error).__name__


def _write_split(
    split: str,
    found: Sequence[tuple[Source, Inspected]],
    out: Path,
    *,
    columns: Sequence[str],
    plain: Sequence[str],
    shard_size: int | None,
    classes: Sequence[str],
) -> None:
    roots = list(dict.fromkeys(str(source.root) for source, _ in found))
    if shard_size is None:
        names = [source.name if str(source.root) == roots[0] else str(source.path) for source, _ in found]
    else:
        roots, names = ["."], _pack(split, [source for source, _ in found], out, shard_size)
    rows: list[dict[str, object]] = [
        {"path": name, "label": source.label, **row}
        for name, (source, inspected) in zip(names, found, strict=True)
        for row in inspected.rows
    ]
    filled = [column for column in columns if any(row.get(column) is not None for row in rows)]
    is_plain = filled == list(plain[: len(filled)])
    table = [["" if row.get(column) is None else row[column] for column in filled] for row in rows]
    write_manifest(out / f"{split}.tsv", roots, None if is_plain else filled, table, classes=classes)


def _pack(split: str, sources: Sequence[Source], out: Path, shard_size: int) -> list[str]:
    """Copy files into shards of about ``shard_size`` bytes; returns where each lies."""
    for old in out.glob(f"{split}-*.zip"):
        old.unlink()
    names: list[str] = []
    shard = 0
    while len(names) < len(sources):
        with ShardWriter(out / f"{split}-{shard:05}.zip") as writer:
            for source in sources[len(names) :]:
                names.append(writer.add(source.name, source.path.read_bytes()))
                if writer.size >= shard_size:
                    break
        shard += 1

    return names
