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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fairseq2.recipe.error import RecipeError

from d2v_plugin.verbs import recipe_files
from d2v_plugin.verbs.recipe_files import BASE as BASE
from d2v_plugin.verbs.recipe_files import RecipeFileError


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
    """As :func:`d2v_plugin.verbs.recipe_files.read_whole`; raises RecipeError."""
    with _raising_recipe_error():
        return recipe_files.read_whole(path)


def read_chain(path: Path) -> tuple[Path, list[Mapping[str, Any]]]:
    """As :func:`d2v_plugin.verbs.recipe_files.read_chain`; raises RecipeError."""
    with _raising_recipe_error():
        return recipe_files.read_chain(path)


@contextmanager
def _raising_recipe_error() -> Iterator[None]:
    try:
        yield
    except RecipeFileError as ex:
        raise RecipeError(str(ex)) from None
