"""Parquet files and Hugging Face datasets on disk (``save_to_disk``), through pyarrow, an extra.

Pictures and recordings are copied, as they are encoded, into archives that are read by byte ranges: within compressed pages they
have no place of their own.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fairseq2.recipe.error import RecipeError
from typing_extensions import Self

from d2v_plugin.core.batch import Modality
from d2v_plugin.core.storage import put_in_place
from d2v_plugin.data.headers import find_kind
from d2v_plugin.data.lines import read_json
from d2v_plugin.data.preparation.cache import read_stamp
from d2v_plugin.data.preparation.common import Report, make_printable
from d2v_plugin.data.preparation.finding import FoundFile, move_root
from d2v_plugin.data.shards import ShardWriter

if TYPE_CHECKING:
    import pyarrow

SUFFIXES: Final = frozenset({".parquet", ".arrow"})
PREFIX: Final = "rows"
"""Of the names of archives."""

_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class Table:
    """A file of rows."""

    path: Path

    features: dict[str, Any]
    """What Hugging Face's datasets say of the columns; empty = nothing."""

    columns: dict[str, pyarrow.DataType]

    @staticmethod
    def open(path: Path) -> Table:
        """:raises RecipeError: pyarrow is not installed, or the file is no table."""
        with _reading(path) as (pa, parquet):
            schema = parquet.read_schema(path) if path.suffix == ".parquet" else _open_arrow(pa, path).schema
            said = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
            return Table(path, said.get("info", {}).get("features", {}), dict(zip(schema.names, schema.types, strict=True)))

    def find_data(self, wanted: str | None) -> tuple[str, Modality]:
        """The column of pictures, recordings or texts.

        :param wanted: its name; None = the only one there is, of texts the one called ``text``.
        :raises RecipeError: there is none, or several.
        """
        found: dict[str, Modality] = {name: kind for name in self.columns if (kind := self._kind_of(name)) is not None}
        files: dict[str, Modality] = {name: kind for name, kind in found.items() if kind is not Modality.TEXT}
        likely: dict[str, Modality] = files or {name: kind for name, kind in found.items() if name == "text"}
        if wanted is not None:
            likely = {name: kind for name, kind in found.items() if name == wanted}
        if len(likely) != 1:
            called = "" if wanted is None else f" and are called `{wanted}`"
            raise RecipeError(
                f"{self.path} has {len(likely)} columns that may be read{called}; name one with --column: "
                f"{', '.join(found) or 'there is none of pictures, recordings or texts'}."
            )
        return next(iter(likely.items()))

    def read(self, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """The values of some columns, for each row; numbers of classes as their names.

        :raises RecipeError: the file is damaged, or has no such column.
        """
        if missing := [name for name in columns if name not in self.columns]:
            raise RecipeError(f"{self.path} has no column `{missing[0]}`; it has: {', '.join(self.columns)}.")
        names = {name: self.features[name]["names"] for name in columns if _type_of(self.features.get(name)) == "ClassLabel"}
        with _reading(self.path) as (pa, parquet):
            if self.path.suffix == ".parquet":
                batches = parquet.ParquetFile(self.path).iter_batches(_ROWS_AT_ONCE, columns=list(columns))
            else:
                source = _open_arrow(pa, self.path)
                parts = source if hasattr(source, "read_next_batch") else map(source.get_batch, range(source.num_record_batches))
                batches = (part.slice(at, _ROWS_AT_ONCE) for part in parts for at in range(0, len(part), _ROWS_AT_ONCE))
            number = 0
            for batch in batches:
                for values in batch.select(list(columns)).to_pylist():
                    for name, classes in names.items():
                        # -1 is what is not said.
                        values[name] = classes[values[name]] if values[name] in range(len(classes)) else None
                    yield number, values
                    number += 1

    def _kind_of(self, column: str) -> Modality | None:
        said, kind = _type_of(self.features.get(column)), self.columns[column]
        if said in ("Image", "Audio"):
            return Modality.IMAGE if said == "Image" else Modality.AUDIO
        if str(kind) in ("string", "large_string"):
            return Modality.TEXT
        if not (str(kind) in ("binary", "large_binary") or str(kind).startswith("struct<bytes:")):
            return None
        first = next((value for _, row in self.read([column]) if (value := _bytes_of(row[column])) is not None), b"")
        return Modality.AUDIO if find_kind(first) is None else Modality.IMAGE


@contextmanager
def _reading(path: Path) -> Iterator[tuple[Any, Any]]:
    """Give pyarrow, and say in a line what is wrong with a file."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise RecipeError(f"{path} is read through pyarrow: pip install pyarrow") from None
    try:
        yield pyarrow, pyarrow.parquet
    except (pyarrow.ArrowException, OSError) as error:
        raise RecipeError(f"{path} cannot be read: {' '.join(str(error).split())}") from None


def _open_arrow(pa: Any, path: Path) -> Any:
    """Hugging Face writes streams; a file of Arrow begins with its name."""
    with path.open("rb") as file:
        is_file = file.read(6) == b"ARROW1"
    return (pa.ipc.open_file if is_file else pa.ipc.open_stream)(pa.memory_map(str(path)))


def _type_of(feature: object) -> object:
    return feature.get("_type") if isinstance(feature, dict) else None


def _bytes_of(value: Any) -> bytes | None:
    found = value.get("bytes") if isinstance(value, dict) else value
    return found if isinstance(found, bytes) else None


def find_tables(path: Path) -> list[tuple[str | None, Path]]:
    """The files of rows of a source, and the split that each is of, as far as the source says so.

    :param path: a file, a folder of ``save_to_disk``, or one of ``SPLIT-00000-of-00003.parquet``.
    :raises RecipeError: there are none.
    """
    if path.is_file():
        return [(None, path)]
    if (listed := path / "dataset_dict.json").is_file():
        return [(rename_split(split), file) for split in read_json(listed)["splits"] for _, file in find_tables(path / split)]
    if (listed := path / "state.json").is_file():
        return [(None, path / part["filename"]) for part in read_json(listed)["_data_files"]]
    files = sorted(file for suffix in SUFFIXES for folder in (path, path / "data") for file in folder.glob(f"*{suffix}"))
    if not files:
        raise RecipeError(f"{path} has no files of rows (*.parquet, *.arrow).")
    splits = {file: file.name.partition("-0")[0] for file in files}
    return [(rename_split(split) if "-0" in file.name else None, file) for file, split in splits.items()]


def rename_split(name: str) -> str:
    """Our name of a split that is validated with."""
    return {"validation": "valid", "dev": "valid"}.get(name, name)


def unpack(
    tables: Sequence[tuple[Table, str]], out: Path, shard_size: int, report: Report, *, label: str | None, speaker: str | None
) -> tuple[list[FoundFile], list[str]]:
    """Copy what the rows hold into archives beside the manifests to be; what a row only names stays where it is.

    :param tables: each with the name of its column.
    :param label: a column; None = rows have no labels.
    :returns: all samples, and the names of the archives.
    """
    found, named = [], []
    files = Counter(table.path.name for table, _ in tables)
    out.mkdir(parents=True, exist_ok=True)
    with _Archives(out, shard_size, [f"{table.path}:{column}:{read_stamp(table.path)}" for table, column in tables]) as archives:
        for table, column in tables:
            wanted = dict.fromkeys(name for name in (column, label, speaker) if name is not None)
            for number, row in table.read(list(wanted)):
                folder = f"{table.path.parent.name}/" if files[table.path.name] > 1 else ""  # such as a split's
                title = f"{folder}{table.path.name}:{number}"
                sample = FoundFile(
                    out.absolute(),
                    "",
                    label=_text(row.get(label or "")),
                    speaker=_text(row.get(speaker or "")),
                    title=title,
                    unit=title,
                    listed_in=table.path,
                )
                if label is not None and sample.label is None:
                    report.drop(title, f"it has no {label}")
                elif (data := _bytes_of(row[column])) is not None:
                    name, place = archives.add(title, data)
                    found.append(replace(sample, name=name, bytes=place))
                elif isinstance(row[column], dict) and (path := row[column].get("path")):
                    named.append(replace(sample, root=Path("/"), name=str((table.path.parent / path).absolute())[1:]))
                else:
                    report.drop(title, f"its {column} is empty")

    return [*found, *move_root(named)], archives.names


class _Archives:
    """Archives that are named after where their contents are from, so that none takes the place of another."""

    def __init__(self, out: Path, shard_size: int, sources: Sequence[str]) -> None:
        self.names: list[str] = []
        self._out, self._shard_size = out, shard_size
        self._digest = hashlib.sha256("\n".join([*sources, str(shard_size)]).encode(errors="surrogateescape")).hexdigest()[:16]
        self._writer: ShardWriter | None = None

    def add(self, title: str, data: bytes) -> tuple[str, tuple[int, int]]:
        """The name of the archive, offset and size."""
        if self._writer is None:
            self.names.append(f"{PREFIX}-{len(self.names):05}-{self._digest}.zip")
            self._writer = ShardWriter(self._out / f".{PREFIX}.{uuid.uuid4().hex}.tmp")
        _, offset, size = self._writer.add(make_printable(title), data).rsplit(":", 2)
        if self._writer.size >= self._shard_size:
            self._finish()
        return self.names[-1], (int(offset), int(size))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._writer is not None and error is None:
            self._finish()
        elif self._writer is not None:
            self._writer.close()
            self._writer.path.unlink(missing_ok=True)

    def _finish(self) -> None:
        assert self._writer is not None
        self._writer.close()
        put_in_place(self._writer.path, self._out / self.names[-1])
        self._writer = None


def _text(value: object) -> str | None:
    return None if value is None or isinstance(value, dict | list | bytes) else " ".join(str(value).split()) or None
