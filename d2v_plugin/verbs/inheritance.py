"""Inheritance of recipes: ``base: ../demo/digits.yaml`` at the top level of a YAML.

What such a file contains is merged into its base as fairseq2 merges overrides: mappings key by key, the rest replaced. Within
a mapping ``_del_: [key, …]`` drops keys of the base first, and ``_set_: {key: …}`` replaces whole values, which is how a recipe
names another component without inheriting the settings of the base's::

    base: ../demo/digits.yaml
    criterion: {_del_: [config], name: mae}

Bases may have bases. ``${dir}`` is the folder of the file it stands in.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq2.recipe.error import RecipeError
from fairseq2.utils.config import ReplacePathDirective, StandardConfigProcessor
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

BASE = "base"


def resolve_bases(args: Namespace) -> Namespace:
    """Turn a recipe file with a base into its last base and overrides of it, which fairseq2 understands.

    :param args: fairseq2's parsed command line; a copy with other ``config_file`` and ``config_overrides`` is returned.
    :raises RecipeError: a base does not exist, cannot be read, or is its own base.
    """
    if args.config_file is None:
        return args
    root, heirs = read_chain(args.config_file)

    return Namespace(**vars(args) | {"config_file": root, "config_overrides": [*heirs, *(args.config_overrides or [])]})


def read_whole(path: Path) -> list[Mapping[str, Any]] | None:
    """Read a recipe file as overrides: its last base, then what the others change; None if the last base cannot be read."""
    root, heirs = read_chain(path)
    content = _read(root)

    return None if content is None else [_replace_dir(content, root), *heirs]


def read_chain(path: Path) -> tuple[Path, list[Mapping[str, Any]]]:
    """Follow the bases of a recipe file.

    :returns: the file without a base at the end of the chain, and what the others change, those closest to it first. A
        file that cannot be read at all ends the chain if it is the first: fairseq2 says what is wrong with it.
    """
    heirs: list[Mapping[str, Any]] = []
    seen = [path.resolve()]
    content = _read(path)
    while content is not None and BASE in content:
        base = content.pop(BASE)
        if not isinstance(base, str):
            raise RecipeError(f"{path}: `{BASE}` must be the path of a recipe file, but is `{base}`.")
        heirs.insert(0, _replace_dir(content, path))
        base_path = path.parent / base
        if not base_path.is_file():
            raise RecipeError(f"{path}: `{BASE}` is {base}, but {base_path} does not exist or is not a file.")
        if base_path.resolve() in seen:
            raise RecipeError(f"{path}: `{BASE}` is {base}, which inherits from {path} itself.")
        seen.append(base_path.resolve())
        path = base_path
        content = _read(path, is_base=True)

    return path, heirs


def _read(path: Path, *, is_base: bool = False) -> dict[str, Any] | None:
    """Read the mapping in a YAML file; None if it has none."""
    try:
        content = YAML(typ="safe", pure=True).load(path)
    except (OSError, YAMLError) as ex:
        if is_base:
            raise RecipeError(f"{path}, a base of this recipe, cannot be read: {ex}") from ex
        return None

    return content if isinstance(content, dict) else None


def _replace_dir(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Put the folder of the file in the place of ``${dir}``, as fairseq2 does for the file it is given."""
    processor = StandardConfigProcessor([ReplacePathDirective(path.parent.resolve())])

    return processor.process(content)  # type: ignore[return-value]
