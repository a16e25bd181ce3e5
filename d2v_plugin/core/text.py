"""Text on the screen: tables, what is not known, and lines that the log would break."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right, each as wide as it needs."""
    table = [header, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]

    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in table
    ]


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Say in a sentence that there is no ``kind`` of this name, what may have been meant, and what there is."""
    known = sorted(known)
    close = get_close_matches(name, known, n=1)
    hint = f" Did you mean `{close[0]}`?" if close else ""

    return f"`{name}` is not a known {kind}.{hint} Known: {', '.join(known) or 'none'}."


def print_unwrapped(text: str) -> None:
    """Print to standard output at once: the log would break tables and paths at the width of the terminal."""
    print(text, flush=True)


def escape_field(text: str) -> str:
    """A field of a tab-separated file: tabs, line breaks and backslashes become ``\\t``, ``\\n``, ``\\r`` and ``\\\\``."""
    return text.translate({ord("\\"): "\\\\", ord("\t"): "\\t", ord("\n"): "\\n", ord("\r"): "\\r"})
