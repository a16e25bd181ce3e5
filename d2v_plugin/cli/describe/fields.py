"""Fields of configurations as data: where each stands, its type, default and docstring."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch

from d2v_plugin.cli.describe.framework_docs import FRAMEWORK_DOCS
from d2v_plugin.cli.describe.framework_ranges import FRAMEWORK_RANGES
from d2v_plugin.cli.describe.units import find_unit
from d2v_plugin.core.ranges import find_ranges

REQUIRED = "required"


@dataclass(frozen=True)
class Described:
    """One setting."""

    key: str
    """Its dotted key, below what is described."""

    type: str

    default: str

    range: str
    """What a number may be; empty for any."""

    unit: str
    """What a number counts or measures; empty for what is no number."""

    doc: str


def describe_fields(config: type[Any] | object, prefix: str = "") -> Iterator[Described]:
    """Describe all fields of a configuration, and those of its sections.

    :param config: a dataclass; or an instance of one, whose values are then the defaults.
    """
    kls = config if isinstance(config, type) else type(config)
    if not is_dataclass(kls):
        return  # such as the scheduler `passthrough`, which has no settings
    hints = get_type_hints(kls)
    for item in fields(kls):
        value = _default_of(item) if isinstance(config, type) else getattr(config, item.name)
        section = _section_of(hints[item.name], value)
        is_component = section is not None and {"name", "config"} <= {part.name for part in fields(section)}  # type: ignore[arg-type]
        if section is None or is_component:
            default = _name_component(value) if is_component else write_value(value)
            yield describe_field(kls, item.name, default, prefix)
            if (inner := _section_inside(hints[item.name])) is not None:
                yield from describe_fields(inner, f"{prefix}{item.name}.NAME.")
            continue
        if value is None:
            yield describe_field(kls, item.name, "null", prefix)
        yield from describe_fields(section, f"{prefix}{item.name}.")


def describe_field(kls: Any, name: str, default: str, prefix: str = "") -> Described:
    """Describe one field of a dataclass.

    :param default: as :func:`write_value` has it.
    """
    kind, limits = write_type(get_type_hints(kls)[name]), find_ranges(kls).get(name)
    framework = (FRAMEWORK_RANGES.get(f"{base.__name__}.{name}", "") for base in kls.__mro__)
    text = next(filter(None, framework), "") if limits is None else limits.text

    return Described(f"{prefix}{name}", kind, default, text, find_unit(name, kind), find_docs(kls).get(name, ""))


@cache
def find_docs(kls: type[Any]) -> Mapping[str, str]:
    """The docstrings below the fields of a class and of its bases, each on one line."""
    found: dict[str, str] = {}
    for base in reversed(kls.__mro__):
        if not is_dataclass(base):
            continue
        names = [item.name for item in fields(base)]
        found |= {name: doc for name in names if (doc := FRAMEWORK_DOCS.get(f"{base.__name__}.{name}")) is not None}
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for before, after in zip(body.body, body.body[1:], strict=False):
            is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
            if isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name) and is_text:
                found[before.target.id] = _clean(after.value.value)  # type: ignore[attr-defined]

    return found


def find_summary(kls: type[Any]) -> str:
    """The docstring of a class, its first paragraph on one line; empty if it has none of its own."""
    text = kls.__dict__.get("__doc__") or ""

    return "" if text.startswith(f"{kls.__name__}(") else _clean(text.split("\n\n")[0])


def _clean(text: str) -> str:
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text)

    return " ".join(text.replace("``", "`").split())


def _default_of(item: Field[Any]) -> object:
    if item.default_factory is not MISSING:
        return item.default_factory()

    return item.default


def _section_of(hint: object, value: object) -> object:
    """The dataclass whose fields stand below a key: of the value if there is one, else of the type; None = no section."""
    if is_dataclass(value) and not isinstance(value, type):
        return value
    kinds = [kind for kind in (hint, *get_args(hint)) if isinstance(kind, type) and is_dataclass(kind)]

    return kinds[0] if value in (None, MISSING) and kinds and not _is_container(hint) else None


def _section_inside(hint: object) -> type[Any] | None:
    """The dataclass that a mapping has as values; None = it is no such mapping."""
    kinds = [kind for kind in get_args(hint) if isinstance(kind, type) and is_dataclass(kind)]

    return kinds[0] if kinds and getattr(hint, "__origin__", None) is dict else None


def _is_container(hint: object) -> bool:
    return getattr(hint, "__origin__", None) in (list, dict, tuple)


def _name_component(value: object) -> str:
    name = getattr(value, "name", None)

    return REQUIRED if name is None else f"{{name: {name}}}"


def write_value(value: object) -> str:
    """A value as a recipe would write it."""
    match value:
        case _ if value is MISSING:
            return REQUIRED
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case Enum():
            return str(value.value)
        case torch.dtype():
            return str(value).removeprefix("torch.")
        case list() | tuple():
            return f"[{', '.join(map(write_value, value))}]"
        case dict():
            return f"{{{', '.join(f'{key}: {write_value(item)}' for key, item in value.items())}}}"
        case str() | Path():
            return str(value) or "''"
    if is_dataclass(value):
        return f"{{{', '.join(f'{item.name}: {write_value(getattr(value, item.name))}' for item in fields(value))}}}"

    return str(value)


def write_type(hint: object) -> str:
    """A type as annotations have it, without modules, and the values of a ``Literal`` as alternatives."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " | ".join(map(repr, args))
    if origin in (Union, UnionType):
        return " | ".join(map(write_type, args))
    name = "None" if hint is NoneType else getattr(origin or hint, "__name__", str(hint))

    return f"{name}[{', '.join(map(write_type, args))}]" if args else name
