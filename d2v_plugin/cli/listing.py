"""Text of ``fairseq2 recipe list``. What is registered is known beforehand, unless there are extensions: it stands in a file."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Final

from d2v_plugin.cli.help import SUMMARIES
from d2v_plugin.core.shipped import SHIPPED, find_shipped

if TYPE_CHECKING:
    from d2v_plugin.verbs.extensions import Extension

REGISTERED: Final = Path(__file__).with_name("registered.txt")
"""What ``fairseq2 recipe list --registered`` prints without extensions; written so, and compared by a test."""


def describe_all(extensions: Sequence[Extension]) -> str:
    """Describe the verbs, all that is registered, and the recipes at hand, as text."""
    if is_extended(extensions):
        from d2v_plugin.cli.registered import describe_registered

        registered = describe_registered(extensions)
    else:
        registered = REGISTERED.read_text(encoding="utf-8").rstrip("\n")
    verbs = write_section("verbs", [f"{name:<9} {summary}" for name, summary in SUMMARIES.items()])

    return "\n\n".join([verbs, registered, write_section("recipes", [_describe_recipe(path) for path in find_recipes()])])


def is_extended(extensions: Sequence[Extension]) -> bool:
    """Tell whether others register more, by files or by entry points of packages."""
    return bool(extensions) or any(point.name != "d2v_plugin" for point in entry_points(group="fairseq2.extension"))


def find_recipes() -> list[Path]:
    """The YAML files under ``recipes/`` of the working directory, else those that came with the package.

    :returns: their names as ``--config-file`` takes them.
    """
    here = Path("recipes")
    if here.is_dir():
        return sorted(here.rglob("*.yaml"))

    return sorted(path.relative_to(SHIPPED / "recipes") for path in (SHIPPED / "recipes").rglob("*.yaml"))


def _describe_recipe(path: Path) -> str:
    first_line = find_shipped(path).read_text(encoding="utf-8").split("\n", 1)[0]

    return f"{path}  {first_line.lstrip('# ')}" if first_line.startswith("#") else str(path)


def write_section(title: str, lines: Sequence[str]) -> str:
    """A title, and below it the lines."""
    return "\n".join([f"{title}:", *(f"  {line}" for line in lines or ["none"])])
