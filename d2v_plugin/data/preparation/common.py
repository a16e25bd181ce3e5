"""Steps of preparing any dataset: splitting, writing, and saying what was found."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from fairseq2.recipe.error import RecipeError
from rich.console import Console
from rich.progress import track

from d2v_plugin.core.storage import write_atomically

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

TRAIN, VALID = "train", "valid"
_REPORT = "report.json"


@dataclass
class Report:
    """Account of what was found and dropped; ends up as ``report.json`` and on the screen."""

    splits: dict[str, dict[str, float]] = field(default_factory=dict)
    """Totals of each split."""

    facts: dict[str, object] = field(default_factory=dict)
    """What is worth knowing of all samples: sample rates, channels, sizes, …"""

    dropped: list[tuple[str, str]] = field(default_factory=list)
    """Name and reason."""

    num_kept: int = 0
    """Files that have not changed since the last run, and were not read again; said on the screen only."""

    def save(self, folder: Path) -> None:
        reasons = dict(Counter(reason for _, reason in self.dropped).most_common())
        content = {"splits": self.splits, "facts": self.facts, "num_dropped": len(self.dropped), "reasons": reasons}
        dropped = [{"name": name, "reason": reason} for name, reason in self.dropped]
        text = json.dumps({**content, "dropped": dropped}, indent=2, ensure_ascii=False)
        write_atomically(folder / _REPORT, text + "\n")

    def __str__(self) -> str:
        lines = []
        for name, totals in self.splits.items():
            listed = ", ".join(f"{value:,.2f} {key}" if value % 1 else f"{value:,.0f} {key}" for key, value in totals.items())
            lines.append(f"{name}: {listed}")
        lines += [f"{name}: {value}" for name, value in self.facts.items()]
        lines += [f"dropped: {len(self.dropped)}", *(f"  {name}: {reason}" for name, reason in self.dropped[:20])]
        if self.num_kept:
            lines.insert(0, f"not read again, since the last run read them: {self.num_kept:,} files")
        if len(self.dropped) > 20:
            lines.append(f"  … and {len(self.dropped) - 20:,} more, see {_REPORT}")

        return "\n".join(lines)


def choose_split(name: str, valid_percent: float, seed: int) -> str:
    """``train`` or ``valid``, from the name alone: what was in a split stays there when files are added."""
    digest = hashlib.blake2b(f"{seed}\0{name}".encode("utf-8", errors="surrogateescape"), digest_size=8).digest()
    return VALID if int.from_bytes(digest, "little") < valid_percent / 100 * (1 << 64) else TRAIN


def refuse_empty_splits(sizes: Mapping[str, int], report: Report, valid_percent: float) -> None:
    """:raises RecipeError: a split would have no samples."""
    wanted = [TRAIN] if valid_percent <= 0 else [VALID] if valid_percent >= 100 else [TRAIN, VALID]
    if empty := [split for split in wanted if not sizes.get(split)]:
        raise RecipeError(
            f"The split `{empty[0]}` would be empty ({sum(sizes.values())} usable samples, {len(report.dropped)} dropped). "
            f"Nothing was written. Give more files, or another `--valid-percent` or `--seed`.\n{report}"
        )


def work_in_parallel(
    work: Callable[[ItemT], ResultT], items: Sequence[ItemT], *, workers: int | None, title: str
) -> Iterator[ResultT]:
    """Work on all items in threads, with a progress bar; results come in the order of the items."""
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        yield from show_progress(pool.map(work, items), total=len(items), title=title)


def show_progress(items: Iterable[ItemT], *, total: int, title: str) -> Iterator[ItemT]:
    """Yield the items, with a progress bar where someone watches."""
    console = Console(stderr=True)
    yield from track(items, title, total=total, console=console, disable=not console.is_terminal)


def write_manifest(
    path: Path,
    roots: Iterable[str],
    columns: Sequence[str] | None,
    rows: Iterable[Sequence[object]],
    *,
    classes: Sequence[str] = (),
) -> None:
    """Write a manifest, whole or not at all.

    :param columns: None = do not declare them.
    :param classes: none = do not declare them.
    """
    lines = ["\t".join(roots)]
    if columns is not None:
        lines.append("\t".join(["#columns", *columns]))
    if classes:
        lines.append("\t".join(["#classes", *classes]))
    lines += ["\t".join(map(str, row)) for row in rows]
    write_atomically(path, "\n".join(lines) + "\n")


def parse_size(text: str) -> int:
    """``500M`` or ``1G`` or a plain number of bytes.

    :raises RecipeError: it is none of these.
    """
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    number = text[:-1] if text[-1:].upper() in units else text
    if not number.isdecimal() or int(number) == 0:
        raise RecipeError(f"`{text}` is no size; write for example 500M or 1G.")
    return int(number) * units.get(text[-1].upper(), 1)
