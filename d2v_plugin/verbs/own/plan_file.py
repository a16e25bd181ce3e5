"""The file of a plan, ``plan.yaml`` in the output directory: a recipe whose comments say what was chosen and how to change it."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fairseq2.recipe.error import RecipeError
from ruamel.yaml import YAML

from d2v_plugin.core.storage import write_atomically
from d2v_plugin.core.text import print_unwrapped

PLAN_FILE: Final = "plan.yaml"
_WAIT: Final = 0.5


def dump_recipe(recipe: Mapping[str, Any]) -> str:
    """A recipe as YAML, the sections in their order."""
    yaml, text = YAML(), io.StringIO()
    yaml.default_flow_style = None
    yaml.width = 120
    yaml.dump(_to_plain(recipe), text)

    return text.getvalue()


def _to_plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _to_plain(item) for key, item in value.items()}
    return [_to_plain(item) for item in value] if isinstance(value, list | tuple) else value


def write_plan(path: Path, wish: str, lines: Sequence[str], recipe: Mapping[str, Any]) -> None:
    """Write a plan, whole or not at all."""
    comments = [f"# {line}".rstrip() for line in (wish, "", *lines, "")]
    write_atomically(path, "\n".join(comments) + "\n" + dump_recipe(recipe))


def read_plan(path: Path, wish: str) -> list[str] | None:
    """The lines of a plan that is there already, which a repeated command follows; None = there is none.

    :raises RecipeError: it was made for something else.
    """
    if not path.exists():
        return None
    comments = [line[2:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    if not comments or comments[0] != wish:
        found = comments[0] if comments else "something else"
        raise RecipeError(
            f"{path} was made for `{found}`, but now it is `{wish}`. Give the same to go on, name another output directory, or "
            f"remove {path} to plan anew."
        )

    return [line for line in comments[1:] if line]


def wait_for_plan(path: Path) -> None:
    """Wait until the first process has written the plan, however long its data take to read; launchers end all if it fails."""
    if os.environ.get("RANK", "0") != "0":
        while not path.exists():
            time.sleep(_WAIT)


def print_on_first_rank(lines: Sequence[str]) -> None:
    """Print lines once, however many processes follow a plan."""
    if os.environ.get("RANK", "0") == "0":
        print_unwrapped("\n".join([*lines, ""]))
