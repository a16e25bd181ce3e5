"""Recipes and small datasets that come with the package: in a wheel inside of it, in a checkout beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_PACKAGE: Final = Path(__file__).parents[1]

SHIPPED: Final = next((path for path in (_PACKAGE / "shipped", _PACKAGE.parent) if (path / "recipes").is_dir()), _PACKAGE)
"""The folder that has ``recipes`` and ``manifests``."""


def find_shipped(path: Path) -> Path:
    """Find a file or folder by the path given, else by its path in what is shipped; the path itself if it is in neither.

    :param path: such as ``my.yaml``, ``recipes/demo/digits.yaml``, ``demo/digits.yaml`` (a recipe) or ``manifests/digits``.
    """
    if path.is_absolute() or ".." in path.parts or path.exists():
        return path
    is_named = path.parts[:1] in (("recipes",), ("manifests",))
    shipped = SHIPPED / path if is_named else SHIPPED / "recipes" / path

    return shipped if shipped.exists() else path
