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

from d2v_plugin.core.plain_yaml import PlainYamlError, read_yaml

BASE = "base"


def resolve_bases(args: Namespace) -> Namespace:
    """Turn a recipe file, with or without a base, into overrides, which fairseq2 understands.

    :param args: fairseq2's parsed command line; a copy with other ``config_file`` and ``config_overrides`` is returned.
    :raises RecipeError: a file does not exist, is no recipe, or is its own base.
    """
    if args.config_file is None:
        return args
    overrides = [*read_whole(args.config_file), *(args.config_overrides or [])]

    return Namespace(**vars(args) | {"config_file": None, "config_overrides": overrides})


def read_whole(path: Path) -> list[Mapping[str, Any]]:
    """Read a recipe file as overrides: its last base, then what the others change."""
    root, heirs = read_chain(path)

    return [_replace_dir(read_recipe(root), root), *heirs]


def read_chain(path: Path) -> tuple[Path, list[Mapping[str, Any]]]:
    """Follow the bases of a recipe file.

    :returns: the file without a base at the end of the chain, and what the others change, those closest to it first.
    :raises RecipeError: as for :func:`resolve_bases`.
    """
    heirs: list[Mapping[str, Any]] = []
    seen = [path.resolve()]
    content = read_recipe(path)
    while BASE in content:
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
        content = read_recipe(path, is_base=True)

    return path, heirs


def read_recipe(path: Path, *, is_base: bool = False) -> dict[str, Any]:
    """Read the mapping in a YAML file.

    :raises RecipeError: there is none.
    """
    kind = ", a base of this recipe, cannot be read: it" if is_base else ""
    try:
        content = read_yaml(path)
    except PlainYamlError as ex:
        hint = "" if path.is_file() else _similar_files(path)
        raise RecipeError(f"{path}{kind} {ex}{hint}.") from None
    except (OSError, ValueError) as ex:
        raise RecipeError(f"{path}{kind} cannot be read: {ex}.") from None
    if content is None:
        raise RecipeError(f"{path}{kind} is empty.")
    if not isinstance(content, dict):
        raise RecipeError(f"{path}{kind} must contain sections such as `task:` and `model:`, but is a {type(content).__name__}.")

    return content


def _similar_files(path: Path) -> str:
    known = sorted(str(file) for file in path.parent.glob("*.yaml"))[:20] if path.parent.is_dir() else []

    return f"; in that directory there are: {', '.join(known)}" if known else ""


def _replace_dir(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Put the folder of the file in the place of ``${dir}``, as fairseq2 does for the file it is given."""
    processor = StandardConfigProcessor([ReplacePathDirective(path.parent.resolve())])

    return processor.process(content)  # type: ignore[return-value]
