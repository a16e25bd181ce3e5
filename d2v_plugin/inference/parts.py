"""Predictions on disk: parts that are written aside and renamed, and the files that are made of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from typing_extensions import override

from d2v_plugin.core.storage import open_atomically
from d2v_plugin.core.text import escape_field
from d2v_plugin.extraction.shards import ShardRange, ShardStore
from d2v_plugin.inference.results import HEADER, Result, format_row
from d2v_plugin.inference.samples import Place

JSON_FILE: Final = "predictions.jsonl"
TABLE_FILE: Final = "predictions.tsv"
_ERROR: Final = "error"
_SUMMARY: Final = "summary"


def format_result(row: int, result: Result) -> str:
    """A line of a part: where the sample lies, what the table says of it, and the fields of the result."""
    return _format_line({"row": row, **result.place.describe(), _SUMMARY: result.summarize(), **result.describe()})


def format_fault(row: int, place: Place, reason: str) -> str:
    """A line of a part for a sample that cannot be read."""
    return _format_line({"row": row, **place.describe(), _ERROR: reason})


def _format_line(content: dict[str, Any]) -> str:
    line = json.dumps(content, ensure_ascii=False)
    # Bytes of names that are no UTF-8 are escaped, so that the file is.
    return line if line.isprintable() else json.dumps(content)


@final
class LineStore(ShardStore[Sequence[str]]):
    """A file of JSON lines for each part; its first line is the hash of the others."""

    @override
    def path_of(self, shard: ShardRange) -> Path:
        return self.folder / f"part-{shard.number:05}.jsonl"

    @override
    def _save(self, path: Path, content: Sequence[str]) -> None:
        text = "".join(f"{line}\n" for line in content)
        path.write_text(f"{_hash(text)}\n{text}", encoding="utf-8")

    @override
    def _check(self, shard: ShardRange) -> None:
        self.read(shard)

    def read(self, shard: ShardRange) -> list[str]:
        """The lines of a part.

        :raises ValueError: it is not as it was written.
        """
        expected, _, text = self.path_of(shard).read_text(encoding="utf-8").partition("\n")
        if _hash(text) != expected:
            raise ValueError("its contents have changed.")
        return text.split("\n")[:-1]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Counts:
    """What all parts together hold."""

    predicted: int
    bad: int
    first_fault: str
    """The first sample that could not be read, and why; empty = there is none."""


def join_parts(store: LineStore, shards: Sequence[ShardRange], out: Path, bad_samples: Path) -> Counts:
    """Write ``predictions.jsonl``, ``predictions.tsv`` and, if samples could not be read, their list; a part at a time.

    Several processes may do so at once: they write the same.
    """
    counts = {"predicted": 0, "bad": 0}
    first_fault = ""
    with (
        open_atomically(out / JSON_FILE) as lines,
        open_atomically(out / TABLE_FILE) as table,
        open_atomically(bad_samples) as faults,
    ):
        table.write(HEADER)
        for content in _walk(store, shards):
            row, place = content["row"], _place_of(content)
            if _ERROR in content:
                counts["bad"] += 1
                first_fault = first_fault or f"{place}: {content[_ERROR]}"
                faults.write(f"{row}\t{escape_field(str(place))}\t{escape_field(content[_ERROR])}\n")
                continue
            counts["predicted"] += 1
            table.write(format_row(row, place, *content.pop(_SUMMARY)))
            lines.write(_format_line(content) + "\n")
    if not counts["bad"]:
        bad_samples.unlink(missing_ok=True)

    return Counts(**counts, first_fault=first_fault)


def _walk(store: LineStore, shards: Iterable[ShardRange]) -> Iterator[dict[str, Any]]:
    for shard in shards:
        yield from map(json.loads, store.read(shard))


def _place_of(content: dict[str, Any]) -> Place:
    return Place(*(content.get(name) for name in ("path", "line", "offset", "size", "start")))  # type: ignore[arg-type]
