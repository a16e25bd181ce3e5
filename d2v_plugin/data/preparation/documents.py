"""Documents: what belongs together in text files, plain or JSON lines."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from fairseq2.recipe.error import RecipeError

from d2v_plugin.data.lines import BYTE_ORDER_MARK, describe_wrong_bytes
from d2v_plugin.data.preparation import tables
from d2v_plugin.data.preparation.common import Report
from d2v_plugin.data.preparation.walking import walk

_KINDS = {type(None): "null", bool: "a truth value", int: "a number", float: "a number", list: "a list", dict: "an object"}


ItemT = TypeVar("ItemT")

Parsed = tuple[list[str], str | None, str | None]
"""Text, label and group."""


@dataclass(frozen=True)
class Document:
    """A text that belongs together."""

    name: str
    """File and number, which decide its split."""

    lines: Sequence[str]

    label: str | None = None

    folder: Path = Path()
    """The source it was found in."""

    group: str | None = None
    """The value of the field that groups are made by."""

    @property
    def file(self) -> str:
        """The name of its file, below the folder."""
        return self.name.rpartition(":")[0]

    @property
    def source(self) -> Path:
        """The file it is from."""
        return self.folder / self.file


def read_documents(paths: Sequence[Path], report: Report, *, group_field: str | None = None) -> Iterator[Document]:
    """Read documents from files and folders: ``.jsonl`` (an object with ``text`` and perhaps ``label`` on each line), or plain
    text, where blank lines separate documents; both may be gzipped. What cannot be used is dropped in the report.

    :param group_field: of JSON lines, the field that groups are made by.
    :raises RecipeError: a path does not exist.
    """
    for path in paths:
        if not path.exists():
            raise RecipeError(f"{path} does not exist.")
        if not (path.is_dir() or path.is_file()):
            raise RecipeError(f"{path} is neither a file nor a folder, and text is read more than once; write it to a file.")
    for folder, name in walk([path.absolute() for path in paths], report):
        file = folder / name
        if file.suffix in tables.SUFFIXES:
            yield from (replace(document, folder=folder) for document in _read_rows(file, name, report, group_field))
            continue
        kind = Path(file.stem).suffix if file.suffix == ".gz" else file.suffix
        is_json = kind in (".jsonl", ".json")
        try:
            with file.open("rb") as content, gzip.open(content) if file.suffix == ".gz" else nullcontext(content) as lines:
                found = _strip_mark(lines)
                documents = _parse_json_lines(found, name, report, group_field) if is_json else _parse_plain(found, name, report)
                for document in documents:
                    yield replace(document, folder=folder)
        except (OSError, EOFError, zlib.error) as error:
            report.drop(name, f"the rest of the file: {error}")


def _strip_mark(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Lines, ended by line feeds alone, without a byte order mark before the first."""
    for number, line in enumerate(lines):
        yield line if number else line.removeprefix(BYTE_ORDER_MARK)


def _parse_plain(lines: Iterator[bytes], name: str, report: Report) -> Iterator[Document]:
    found: list[str] = []
    fault = ""
    number = 0
    for line_nr, line in enumerate(chain(lines, [b""]), 1):
        try:
            text = line.decode().strip()
        except UnicodeDecodeError as error:
            fault = fault or f"{describe_wrong_bytes(error)}: line {line_nr}"
            continue
        if text:
            found.append(text)
            continue
        if fault := fault or find_fault(found):
            report.drop(f"{name}:{number}", fault)
        elif found:
            yield Document(f"{name}:{number}", found)
        number += bool(found or fault)
        found, fault = [], ""


def _parse_json_lines(lines: Iterator[bytes], name: str, report: Report, group_field: str | None) -> Iterator[Document]:
    return _make_documents(enumerate(lines, 1), partial(_parse_object, group_field=group_field), name, report)


def _read_rows(path: Path, name: str, report: Report, group_field: str | None) -> Iterator[Document]:
    """Read the columns ``text`` and perhaps ``label`` of a table."""
    table = tables.Table.open(path)
    wanted = [column for column in ("text", "label", group_field) if column is not None and column in table.columns]
    if "text" not in wanted:
        report.drop(name, "no column `text`")
        return iter(())
    return _make_documents(table.read(wanted), partial(_check_object, group_field=group_field), name, report)


def _make_documents(
    found: Iterable[tuple[int, ItemT]], parse: Callable[[ItemT], Parsed], name: str, report: Report
) -> Iterator[Document]:
    """A document of each line or row; what is none is dropped in the report.

    :param found: with their numbers.
    """
    for number, item in found:
        try:
            text, label, group = parse(item)
        except ValueError as error:
            report.drop(f"{name}:{number}", str(error))
            continue
        yield Document(f"{name}:{number}", text, label, group=group)


def _parse_object(line: bytes, group_field: str | None) -> Parsed:
    """Text, label and group of a line.

    :raises ValueError: it cannot be used; says why.
    """
    try:
        content = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(describe_wrong_bytes(error)) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no object with a `text`: {error}") from None
    if not isinstance(content, dict) or "text" not in content:
        raise ValueError("no object with a `text`")
    return _check_object(content, group_field)


def _check_object(content: Mapping[str, Any], group_field: str | None) -> Parsed:
    """As :func:`_parse_object`, of what a line or a row holds."""
    text, label = content["text"], content.get("label")
    if not isinstance(text, str):
        raise ValueError(f"the text is {_KINDS[type(text)]}, not a string")
    # Other separators than line feeds are part of a sentence.
    found = [part for part in map(str.strip, text.split("\n")) if part]
    if not found:
        raise ValueError("the text is empty")
    if isinstance(label, list | dict) or (isinstance(label, float) and not math.isfinite(label)):
        raise ValueError(f"the label is {_KINDS[type(label)]}, not a string")
    label = None if label is None or label == "" else str(label)
    if fault := find_fault(found) or find_fault([label or ""]):
        raise ValueError(fault)
    if label is not None and any(separator in label for separator in "\t\n\r"):
        raise ValueError("the label has a tab or a line break")

    group = None if group_field is None else content.get(group_field)

    return found, label, None if group is None else str(group)


def find_fault(lines: Iterable[str]) -> str:
    """Tell why no token ids could be made of lines; empty if they can."""
    for line in lines:
        if "\0" in line:
            return "it has a NUL, as only files have that are no text"
        try:
            line.encode()
        except UnicodeEncodeError:
            return "it has half a character (a lone surrogate)"
    return ""
