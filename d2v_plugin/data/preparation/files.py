"""Audio and images: from folders of files to manifests, as loose files or packed into shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from typing_extensions import NotRequired, Unpack

from d2v_plugin.data.bad_samples import SampleError
from d2v_plugin.data.preparation.cache import InspectionCache, read_stamp
from d2v_plugin.data.preparation.common import (
    TRAIN,
    Report,
    check_out,
    note_other_manifests,
    refuse_empty_splits,
    remove_other_shards,
    replace_manifests,
    work_in_parallel,
    write_manifest,
)
from d2v_plugin.data.preparation.duplicates import digest_file, find_duplicates
from d2v_plugin.data.preparation.finding import FoundFile
from d2v_plugin.data.preparation.packing import pack
from d2v_plugin.data.preparation.splitting import SplitOptions, Splitter, Unit

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


class FileOptions(SplitOptions):
    """Options of preparing files of any kind."""

    shard_size: int | None
    """Bytes of the archives to pack into; None = leave files where they are."""

    workers: int | None
    """Threads; None = one for each processor."""

    reread: NotRequired[bool]
    """Also read what the last run into the same folder has read, and what has not changed since."""

    check_duplicates: NotRequired[bool]
    """Compare the contents of the files of all splits, and report those that are equal."""


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
    :raises RecipeError: a split would be empty, or the options of splitting are wrong; nothing is written then.
    """
    check_out(out)
    shard_size = options["shard_size"]
    splitter = Splitter(out, options)
    units = [
        splitter.find_unit(source.listed_in or source.root, source.unit or source.name, report, value=source.speaker)
        for source in sources
    ]
    kept = [(source, unit) for source, unit in zip(sources, units, strict=True) if unit is not None]
    sources = [source for source, _ in kept]
    cache = InspectionCache(out, settings, reread=options.get("reread", False))
    results = work_in_parallel(
        lambda source: _try(inspect, source, cache), sources, workers=options["workers"], title="Inspecting"
    )
    usable = _drop_unusable(kept, results, report)
    report.num_kept = cache.count_kept()
    splitter.cut(np.array([unit.key for _, unit, _ in usable if unit.split == TRAIN], dtype=np.uint64), report)
    splits: dict[str, list[tuple[FoundFile, Inspected]]] = {split: [] for split in splitter.splits}
    for source, unit, result in usable:
        splits.setdefault(splitter.split_of(unit), []).append((source, result))
    refuse_empty_splits({split: len(found) for split, found in splits.items()}, report, splitter.splits)
    sums = _count(splits, report, has_classes=declare_classes)

    if options.get("check_duplicates", False):
        files = [(split, source.called, source.location) for split, found in splits.items() for source, _ in found]
        locations = [location for _, _, location in files]
        digests = work_in_parallel(digest_file, locations, workers=options["workers"], title="Comparing contents")
        report.duplicates = find_duplicates((*file[:2], digest) for file, digest in zip(files, digests, strict=True))
    out.mkdir(parents=True, exist_ok=True)
    labels = {source.label for found in splits.values() for source, _ in found if source.label is not None}
    classes = sorted(labels) if declare_classes else []
    filled = {split: found for split, found in splits.items() if found}
    places: dict[str, list[str]] = {}
    if shard_size is not None:
        for split, found in filled.items():
            places[split] = pack(split, [(source.called, source.location) for source, _ in found], out, shard_size, cache)
    with replace_manifests(out):
        splitter.save()
        for split, found in filled.items():
            _write_split(out / f"{split}.tsv", found, places.get(split), columns=columns, classes=classes)
    for split, packed in places.items():
        remove_other_shards(out, split, {place.partition(":")[0] for place in packed}, "zip")
    note_other_manifests(out, filled, report)
    cache.save()
    report.save(out)

    return sums


def _drop_unusable(
    sources: Sequence[tuple[FoundFile, Unit]], results: Iterable[Inspected | str], report: Report
) -> list[tuple[FoundFile, Unit, Inspected]]:
    usable = []
    for (source, unit), result in zip(sources, results, strict=True):
        if isinstance(result, str):
            report.drop(source.called, result)
        else:
            usable.append((source, unit, result))

    return usable


def _count(splits: Mapping[str, Sequence[tuple[FoundFile, Inspected]]], report: Report, *, has_classes: bool) -> Counter[str]:
    """Count in the report what is in the splits; returns the sums over all of them."""
    counts: dict[str, Counter[object]] = {}
    sums: Counter[str] = Counter()
    for split, found in splits.items():
        totals: dict[str, float] = {"files": 0, "rows": 0}
        here: dict[str, Counter[object]] = {}
        for source, result in found:
            for name, value in {"files": 1, "rows": len(result.rows), **result.totals}.items():
                totals[name] = totals.get(name, 0) + value
            label = {"labels": source.label} if has_classes and source.label is not None else {}
            for name, fact in (result.facts | label).items():
                here.setdefault(name, Counter())[fact] += 1
            sums.update(result.sums)
        report.splits[split] = totals
        report.split_facts[split] = {name: dict(counter.most_common()) for name, counter in here.items()}
        for name, counter in here.items():
            counts.setdefault(name, Counter()).update(counter)
    labels = counts.pop("labels", Counter())
    if lacking := sorted(map(str, labels.keys() - set(report.labels_of(TRAIN) or labels))):
        report.facts["labels that train lacks"] = lacking
    report.facts |= {name: dict(counter.most_common()) for name, counter in counts.items()}

    return sums


def _try(inspect: Inspect, source: FoundFile, cache: InspectionCache) -> Inspected | str:
    """Inspect a file, unless it is known; returns why it cannot be used instead if it cannot."""
    try:
        stamp = source.stamp or read_stamp(source.path)
        facts = cache.find(source.key, stamp)
        inspected = inspect(source) if facts is None else Inspected(**facts)
    except (SampleError, OSError, RuntimeError, ValueError) as error:
        return " ".join(str(error).split()) or type(error).__name__
    except Exception as error:  # decoders raise anything for what they did not expect
        return f"it cannot be decoded: {type(error).__name__}: {' '.join(str(error).split())}"
    cache.remember(source.key, stamp, asdict(inspected))

    return inspected


def _write_split(
    path: Path,
    found: Sequence[tuple[FoundFile, Inspected]],
    places: Sequence[str] | None,
    *,
    columns: Sequence[str],
    classes: Sequence[str],
) -> None:
    """:param places: (found,) where each file lies in shards; None = where it was found."""
    roots = list(dict.fromkeys(str(source.root) for source, _ in found))
    names = places
    if names is None:
        names = [source.name_in(roots[0]) for source, _ in found]
    table: Rows = [
        {"path": name, "label": source.label, "speaker": source.speaker, **row}
        for name, (source, inspected) in zip(names, found, strict=True)
        for row in inspected.rows
    ]
    filled = [column for column in columns if any(row.get(column) is not None for row in table)]
    is_plain = filled == list(columns[: len(filled)])
    fields = [["" if row.get(column) is None else row[column] for column in filled] for row in table]
    here = str(path.parent.absolute())
    roots = ["." if places is not None or root == here else root for root in roots]
    write_manifest(path, dict.fromkeys(roots), None if is_plain else filled, fields, classes=classes)
