"""Extension files, in which users register more: ``--extension FILE.py``."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fairseq2.recipe.base import Recipe
from fairseq2.recipe.component import ComponentManager
from fairseq2.recipe.error import RecipeError
from fairseq2.runtime.dependency import DependencyContainer
from typing_extensions import override

from d2v_plugin.core.fairseq2_private import StandardComponentManager, register_library
from d2v_plugin.models.families import is_registered
from d2v_plugin.verbs.inheritance import resolve_bases
from d2v_plugin.verbs.registration import register_everything

FUNCTION = "setup_fairseq2_extension"

Extension = Callable[[DependencyContainer], None]


def register_all(container: DependencyContainer, extensions: Sequence[Extension]) -> None:
    """Register this package, unless its entry point did (it is not installed in a mere checkout), and the extensions."""
    if not is_registered(container):
        register_everything(container)

    for extension in extensions:
        extension(container)


def open_library(extensions: Sequence[Extension] = ()) -> DependencyContainer:
    """fairseq2's objects with everything registered, for what is no recipe; nothing global changes."""
    container = DependencyContainer()
    register_library(container, no_progress=True)
    # What a recipe's container has beside the library.
    container.register_type(ComponentManager, StandardComponentManager, singleton=True)
    register_all(container, extensions)

    return container


class ExtensibleRecipe(Recipe):
    """A recipe that knows everything this package and its user's extension files register."""

    def __init__(self, extensions: Sequence[Extension] = ()) -> None:
        """
        :param extensions: functions that register more, such as an extension file's ``setup_fairseq2_extension``.
        """
        self._extensions = extensions

    @override
    def register(self, container: DependencyContainer) -> None:
        register_all(container, self._extensions)

    def resolve_arguments(self, args: Namespace) -> Namespace:
        """Turn the parsed command line into one that fairseq2 understands: what a recipe inherits becomes overrides.

        :raises RecipeError: as for :func:`d2v_plugin.verbs.inheritance.resolve_bases`.
        """
        return resolve_bases(args)


def load_extension(path: Path) -> Extension:
    """Run an extension file.

    :returns: its ``setup_fairseq2_extension``, whose exceptions name the file and the line.
    :raises RecipeError: there is no such file, it cannot be run, or it does not define the function.
    """
    if not path.is_file():
        raise RecipeError(f"--extension {path}: there is no such file.")

    # Classes are found again by the name of their module, hence the entry in `sys.modules`.
    name = f"d2v_extension_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RecipeError(f"--extension {path}: the name of the file must end in `.py`.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with _errors_in(path):
        spec.loader.exec_module(module)

    function = getattr(module, FUNCTION, None)
    if not callable(function):
        raise RecipeError(f"--extension {path}: the file must define a function `{FUNCTION}(container)`.")

    def extension(container: DependencyContainer) -> None:
        with _errors_in(path):
            function(container)

    return extension


@contextmanager
def _errors_in(path: Path) -> Iterator[None]:
    """Name the file and the line in whatever goes wrong there."""
    try:
        yield
    except Exception as ex:
        frames = [frame for frame in traceback.extract_tb(ex.__traceback__) if Path(frame.filename) == path]
        line = ex.lineno if isinstance(ex, SyntaxError) else frames[-1].lineno if frames else None
        where = "" if line is None else f", line {line}"
        raise RecipeError(f"--extension {path}{where}: {type(ex).__name__}: {ex}") from None
