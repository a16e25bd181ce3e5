"""Reading of YAML that others wrote: plain data of a bounded size, or one sentence that says what is wrong and where."""

from __future__ import annotations

from copy import deepcopy
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, DocumentStartEvent, NodeEvent

MAX_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 50
MAX_NODES: Final = 50_000
"""Values of a file, those behind anchors counted wherever they are meant."""


class PlainYamlError(ValueError):
    """A text is not plain YAML; the message is the end of a sentence that begins with the name of the text."""


def read_yaml(path: Path) -> Any:
    """Read a file.

    :raises PlainYamlError: it is not plain YAML.
    :raises OSError: it cannot be read.
    """
    if not path.is_file():
        raise PlainYamlError("does not exist or is not a file")
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    try:
        text = data[:MAX_BYTES].decode("utf-8-sig")
    except UnicodeDecodeError as ex:
        line = data.count(b"\n", 0, ex.start) + 1
        raise PlainYamlError(f"is not UTF-8 text: line {line} has the byte 0x{data[ex.start]:02x}; save it as UTF-8") from None
    if len(data) > MAX_BYTES:
        raise PlainYamlError(f"is larger than the {MAX_BYTES:,} bytes that are read of a YAML file")

    return parse_yaml(text)


def parse_yaml(text: str) -> Any:
    """Turn a text with one document into mappings with names as keys, lists, strings, numbers, booleans and None.

    :raises PlainYamlError: as for :func:`read_yaml`.
    """
    return deepcopy(_parse(text))


@lru_cache(maxsize=64)  # a command reads its recipe, and what that inherits from, several times
def _parse(text: str) -> Any:
    try:
        _check_size(text)
        content = YAML(typ="safe", pure=True).load(text)
    except PlainYamlError:
        raise
    except MarkedYAMLError as ex:
        line = "" if ex.problem_mark is None else f", line {ex.problem_mark.line + 1}"
        raise PlainYamlError(f"is not valid YAML{line}: {ex.problem or ex.context}") from None
    except Exception as ex:
        # The library lets errors of Python's own types through: of a date with 13 months, of `!!int x`, of a list as a key.
        raise PlainYamlError(f"is not valid YAML: {str(ex).splitlines()[0] if str(ex) else type(ex).__name__}") from None
    _check_types(content, "")

    return content


def _check_size(text: str) -> None:
    """Bound depth and number of values before any is made: a few lines of anchors can stand for billions."""
    sizes: dict[str, int] = {}
    opened: list[tuple[str | None, int]] = []
    total = documents = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        if isinstance(event, DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise PlainYamlError(f"has a second document, from line {event.start_mark.line + 1} on; one is read")
        elif isinstance(event, CollectionEndEvent):
            anchor, before = opened.pop()
            if anchor is not None:
                sizes[anchor] = total - before
        elif isinstance(event, NodeEvent):
            line = event.start_mark.line + 1
            if isinstance(event, AliasEvent):
                if any(anchor == event.anchor for anchor, _ in opened):
                    raise PlainYamlError(f"is not plain YAML: in line {line} `*{event.anchor}` contains itself")
                total += sizes.get(event.anchor, 0)
            elif isinstance(event, CollectionStartEvent):
                opened.append((event.anchor, total))
            elif event.anchor is not None:
                sizes[event.anchor] = 1
            total += 1
            if len(opened) > MAX_DEPTH:
                raise PlainYamlError(f"is nested more than {MAX_DEPTH} levels deep in line {line}")
            if total > MAX_NODES:
                raise PlainYamlError(f"stands for more than {MAX_NODES:,} values in line {line}")


def _check_types(value: Any, key: str) -> None:
    where = f": `{key}`" if key else ":"
    if isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str):
                raise PlainYamlError(f"is not plain YAML{where} has the key `{name}`, which is no name; quote it if it is one")
            if "\0" in name:
                raise PlainYamlError(f"is not plain YAML{where} has a key with a NUL character")
            _check_types(item, f"{key}.{name}".lstrip("."))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_types(item, f"{key}.{index}".lstrip("."))
    elif isinstance(value, date):
        raise PlainYamlError(f"is not plain YAML{where} {value} is read as a date; quote it if it is a text")
    elif isinstance(value, str):
        if "\0" in value:
            raise PlainYamlError(f"is not plain YAML{where} has a NUL character")
    elif isinstance(value, float) and value != value:
        raise PlainYamlError(f"is not plain YAML{where} is not a number (.nan)")
    elif value is not None and not isinstance(value, bool | int | float):
        raise PlainYamlError(f"is not plain YAML{where} is a {type(value).__name__}; use mappings, lists, strings and numbers")
