"""Steps of preparing any dataset: splitting, writing, and saying what was found."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from fairseq2.recipe.error import RecipeError

from d2v_plugin.core.storage import write_atomically
from d2v_plugin.data.manifest import UNFINISHED_FILE
from d2v_plugin.data.preparation.progress import show_progress

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

TRAIN = "train"
REPORT = "report.json"
"""Beside the manifests: what was found, dropped and measured."""

_NUM_LISTED = 20


@dataclass
class Report:
    """Account of what was found and dropped; ends up as ``report.json`` and on the screen."""

    splits: dict[str, dict[str, float]] = field(default_factory=dict)
    """Totals of each split."""

    split_facts: dict[str, dict[str, dict[object, int]]] = field(default_factory=dict)
    """What is worth knowing of each split: its labels, sample rates, channels, sizes, …"""

    facts: dict[str, object] = field(default_factory=dict)
    """What is worth knowing of all samples."""

    dropped: list[tuple[str, str]] = field(default_factory=list)
    """Name and reason."""

    duplicates: list[dict[str, str]] | None = None
    """Samples of equal contents in two splits: for each of the two its name, by split; None = nobody looked."""

    num_kept: int = 0
    """Files that have not changed since the last run, and were not read again; said on the screen only."""

    notes: list[str] = field(default_factory=list)
    """What is worth knowing of this run, but not of the dataset; said on the screen only."""

    def drop(self, name: str, reason: str) -> None:
        """:param reason: what is the same for others comes first, then perhaps a colon and the details."""
        self.dropped.append((make_printable(name), make_printable(reason)))

    @property
    def reasons(self) -> dict[str, int]:
        """How many were dropped for each kind of reason, the most frequent first: without details, numbers and paths."""
        return dict(Counter(_kind_of(reason) for _, reason in self.dropped).most_common())

    def save(self, folder: Path) -> None:
        splits = {
            name: {**totals, "percent": self.percent(name), **self.split_facts.get(name, {})}
            for name, totals in self.splits.items()
        }
        content: dict[str, object] = {"splits": splits, "facts": self.facts, "num_dropped": len(self.dropped)}
        content |= {"reasons": self.reasons, "dropped": [{"name": name, "reason": reason} for name, reason in self.dropped]}
        if self.duplicates is not None:
            content["duplicates"] = [{split: make_printable(name) for split, name in names.items()} for names in self.duplicates]
        text = json.dumps(content, indent=2, ensure_ascii=False)
        write_atomically(folder / REPORT, text + "\n")

    def labels_of(self, split: str) -> Collection[object]:
        """The labels of a split; none if they are not counted."""
        return self.split_facts.get(split, {}).get("labels", {}).keys()

    def percent(self, split: str) -> float:
        """The share of a split in all files or documents."""
        numbers = {name: next(iter(totals.values()), 0) for name, totals in self.splits.items()}

        return round(100 * numbers[split] / max(sum(numbers.values()), 1), 4)

    def __str__(self) -> str:
        lines = []
        for name, totals in self.splits.items():
            listed = ", ".join(f"{value:,.2f} {key}" if value % 1 else f"{value:,.0f} {key}" for key, value in totals.items())
            lines.append(f"{name}: {listed} ({self.percent(name):.4g} %)")
        lines += [f"{name}: {value}" for name, value in self.facts.items()]
        if self.duplicates is not None:
            lines.append(f"equal contents in two splits: {len(self.duplicates):,}")
            for names in self.duplicates[:_NUM_LISTED]:
                lines.append("  " + " = ".join(f"{name} ({split})" for split, name in names.items()))
        lines.append(f"dropped: {len(self.dropped):,}")
        lines += [f"  {count:,} x {reason}" for reason, count in self.reasons.items()][:_NUM_LISTED]
        lines += [f"    {name}: {reason}" for name, reason in self.dropped[:_NUM_LISTED]]
        lines = [*self.notes, *lines]
        if self.num_kept:
            lines.insert(0, f"not read again, since the last run read them: {self.num_kept:,} files")
        if len(self.dropped) > _NUM_LISTED:
            lines.append(f"    … and {len(self.dropped) - _NUM_LISTED:,} more, see {REPORT}")

        return make_printable("\n".join(lines))


def _kind_of(reason: str) -> str:
    """A reason without what differs from file to file."""
    return re.sub(r"(?<![\w.])\d[\d,.]*\b", "N", re.sub(r"'[^']*'", "…", reason.partition(": ")[0]))


def make_printable(text: str) -> str:
    """Write the bytes of names that are no UTF-8 as ``\\xff``: they could neither be printed nor be read back."""
    return text.encode("utf-8", errors="surrogateescape").decode("utf-8", errors="backslashreplace")


def check_out(out: Path) -> None:
    """Refuse at once what could not be written to after hours of reading.

    :raises RecipeError: it is no folder, or none can be made there.
    """
    existing = next(path for path in (out.absolute(), *out.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise RecipeError(f"OUT is {out}, but {existing} is no folder; name another one.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise RecipeError(f"OUT is {out}, but nothing can be written to {existing}.")


@contextmanager
def replace_manifests(out: Path) -> Iterator[None]:
    """Replace what belongs together: whoever opens the dataset meanwhile, or after it was cut short, is told so."""
    marker = out / UNFINISHED_FILE
    write_atomically(marker, "The manifests beside this file are being replaced. Run `fairseq2 recipe manifest` again.\n")
    yield
    marker.unlink()


def note_other_manifests(out: Path, written: Collection[str], report: Report) -> None:
    """Report manifests of an earlier run that this one does not replace: their samples may be in a split of this one, too."""
    if left := sorted(path.name for path in out.glob("*.tsv") if path.stem not in written):
        report.facts["manifests of an earlier run, left as they are"] = left


def remove_other_shards(out: Path, split: str, kept: Collection[str], suffixes: str) -> None:
    """Remove the shards of earlier runs.

    :param suffixes: of shards, with ``|`` in between.
    """
    for path in out.glob(f"{split}-*"):
        if path.name not in kept and re.fullmatch(rf"{re.escape(split)}-\d{{5}}(-[0-9a-f]{{16}})?\.({suffixes})", path.name):
            path.unlink()


def refuse_empty_splits(sizes: Mapping[str, int], report: Report, wanted: Sequence[str]) -> None:
    """
    :param wanted: names of splits.
    :raises RecipeError: one of them would have no samples.
    """
    if empty := [split for split in wanted if not sizes.get(split)]:
        raise RecipeError(
            f"The split `{empty[0]}` would be empty ({sum(sizes.values())} usable samples, {len(report.dropped)} dropped). "
            f"Nothing was written. Give more files, or other shares or another `--seed`.\n{report}"
        )


def work_in_parallel(
    work: Callable[[ItemT], ResultT], items: Sequence[ItemT], *, workers: int | None, title: str
) -> Iterator[ResultT]:
    """Work on all items in threads, with a progress bar; results come in the order of the items."""
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        yield from show_progress(pool.map(work, items), total=len(items), title=title)


def write_manifest(
    path: Path,
    roots: Iterable[str],
    columns: Sequence[str] | None,
    rows: Iterable[Sequence[object]],
    *,
    classes: Sequence[str] = (),
    vocabulary: str | None = None,
) -> None:
    """Write a manifest, whole or not at all.

    :param columns: None = do not declare them.
    :param classes: none = do not declare them.
    :param vocabulary: digest of the tokenizer that made the ids; None = do not declare it.
    """
    lines = ["\t".join(roots)]
    if columns is not None:
        lines.append("\t".join(["#columns", *columns]))
    if classes:
        lines.append("\t".join(["#classes", *classes]))
    if vocabulary is not None:
        lines.append(f"#vocabulary\t{vocabulary}")
    lines += ["\t".join(map(str, row)) for row in rows]
    write_atomically(path, "\n".join(lines) + "\n")


def parse_size(text: str) -> int:
    """``500M`` or ``1G`` or a plain number of bytes.

    :raises RecipeError: it is none of these.
    """
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    number = text[:-1] if text[-1:].upper() in units else text
    if not number.isdecimal() or len(number) > 18 or int(number) == 0:
        raise RecipeError(f"`{text:.30}` is no size; write for example 500M or 1G.")
    return int(number) * units.get(text[-1].upper(), 1)
