"""Reading of a configuration, whose mistakes are all found in one start."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from fairseq2.recipe.error import RecipeConfigParseError
from fairseq2.runtime.dependency import DependencyResolver
from fairseq2.utils.validation import ValidationError

from d2v_plugin.cli.user_errors import explain, list_mistakes, place_of, tidy
from d2v_plugin.core.fairseq2_private import RecipeConfigHolder

_MOST: int = 20


def read_config(resolver: DependencyResolver, resolved: Namespace, args: Namespace) -> list[str]:
    """Read the configuration; what is wrong is left out and the rest read again, until it can be read and checked.

    :param resolved: the command line that fairseq2 reads, bases resolved; what is wrong is dropped from it.
    :param args: the command line as it was given, for messages.
    :returns: a sentence for each mistake; none: the configuration is read.
    """
    mistakes: list[str] = []
    dropped: list[str] = []
    while len(mistakes) < _MOST:
        try:
            resolver.resolve(RecipeConfigHolder)
        except ValidationError as ex:
            # What was dropped is not missing.
            found = [line for line in list_mistakes(ex.result) if not any(part in line for part in dropped)]
            return [*mistakes, *map(tidy, found)]
        except RecipeConfigParseError as ex:
            line, place = explain(ex, resolver, args), place_of(ex)
            if line is None or (place is None and not mistakes):
                raise
            mistakes += line.split("\n  ")
            if place is None:
                break
            section, names = place
            dropped += [part for name in names for part in (f"{name}`", f"`{'.'.join([*section, name])}.")]
            _drop(resolved, *place)
        else:
            break

    return mistakes


def _drop(resolved: Namespace, section: Sequence[str], names: Sequence[str]) -> None:
    """Drop keys from the configuration, so that their defaults are read."""
    override: dict[str, Any] = {"_del_": list(names)}
    for name in reversed(section):
        override = {name: override}
    resolved.config_overrides = [*(resolved.config_overrides or []), override]
