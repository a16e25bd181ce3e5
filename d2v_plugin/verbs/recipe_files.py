"""Recipe files as plain data: bases followed, overrides merged. Nothing heavy is imported, so that mistakes show at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from d2v_plugin.core.plain_yaml import PlainYamlError, read_yaml

BASE = "base"


class RecipeFileError(ValueError):
    """A file does not exist, is no recipe, or is its own base."""


def read_whole(path: Path) -> list[Mapping[str, Any]]:
    """Read a recipe file as overrides: its last base, then what the others change."""
    root, heirs = read_chain(path)

    return [_replace_dir(read_recipe(root), root), *heirs]


def read_chain(path: Path) -> tuple[Path, list[Mapping[str, Any]]]:
    """Follow the bases of a recipe file.

    :returns: the file without a base at the end of the chain, and what the others change, those closest to it first.
    :raises RecipeFileError: a file does not exist, is no recipe, or is its own base.
    """
    heirs: list[Mapping[str, Any]] = []
    seen = [path.resolve()]
    content = read_recipe(path)
    while BASE in content:
        base = content.pop(BASE)
        if not isinstance(base, str):
            raise RecipeFileError(f"{path}: `{BASE}` must be the path of a recipe file, but is `{base}`.")
        heirs.insert(0, _replace_dir(content, path))
        base_path = path.parent / base
        if not base_path.is_file():
            raise RecipeFileError(f"{path}: `{BASE}` is {base}, but {base_path} does not exist or is not a file.")
        if base_path.resolve() in seen:
            raise RecipeFileError(f"{path}: `{BASE}` is {base}, which inherits from {path} itself.")
        seen.append(base_path.resolve())
        path = base_path
        content = read_recipe(path, is_base=True)

    return path, heirs


def read_recipe(path: Path, *, is_base: bool = False) -> dict[str, Any]:
    """Read the mapping in a YAML file.

    :raises RecipeFileError: there is none.
    """
    kind = ", a base of this recipe, cannot be read: it" if is_base else ""
    try:
        content = read_yaml(path)
    except PlainYamlError as ex:
        hint = "" if path.is_file() else _similar_files(path)
        raise RecipeFileError(f"{path}{kind} {ex}{hint}.") from None
    except (OSError, ValueError) as ex:
        raise RecipeFileError(f"{path}{kind} cannot be read: {ex}.") from None
    if content is None:
        raise RecipeFileError(f"{path}{kind} is empty.")
    if not isinstance(content, dict):
        raise RecipeFileError(
            f"{path}{kind} must contain sections such as `task:` and `model:`, but is a {type(content).__name__}."
        )

    return content


def merge(configs: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge overrides as fairseq2 does, the later above the earlier; a ``_del_`` that it would refuse counts as none."""
    merged: dict[str, Any] = {}
    for config in configs:
        merged = _merge_two(merged, config)

    return merged


def _merge_two(target: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    dropped, replaced = source.get("_del_"), source.get("_set_")
    output = {key: value for key, value in target.items() if not (isinstance(dropped, list) and key in dropped)}
    for key, value in source.items():
        if key in ("_del_", "_set_"):
            continue
        if isinstance(value, Mapping):
            under = output.get(key)
            value = _merge_two(under if isinstance(under, Mapping) else {}, value)
        output[key] = deepcopy(value)
    if isinstance(replaced, Mapping):
        output |= deepcopy(dict(replaced))

    return output


def look_up(config: object, key: str) -> Any:
    """The value of a dotted key, in which numbers select from lists; None if there is none."""
    for name in key.split("."):
        if isinstance(config, list) and name.isdecimal() and int(name) < len(config):
            config = config[int(name)]
        else:
            config = config.get(name) if isinstance(config, Mapping) else None

    return config


def nest(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted key, nested as a recipe has them."""
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        *sections, name = key.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value

    return nested


def _similar_files(path: Path) -> str:
    known = sorted(str(file) for file in path.parent.glob("*.yaml"))[:20] if path.parent.is_dir() else []

    return f"; in that directory there are: {', '.join(known)}" if known else ""


def _replace_dir(value: Any, path: Path) -> Any:
    """Put the folder of the file in the place of ``${dir}``, as fairseq2 does for the file it is given."""
    if isinstance(value, dict):
        return {key: _replace_dir(item, path) for key, item in value.items()}
    if isinstance(value, list):
        return [_replace_dir(item, path) for item in value]

    return value.replace("${dir}", str(path.parent.resolve())) if isinstance(value, str) else value
