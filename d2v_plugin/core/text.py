"""Text on the screen: tables, and lines that the log would break."""

from __future__ import annotations

from collections.abc import Sequence


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


def print_unwrapped(text: str) -> None:
    """Print to standard output at once: the log would break tables and paths at the width of the terminal."""
    print(text, flush=True)


def escape_field(text: str) -> str:
    """A field of a tab-separated file: tabs, line breaks and backslashes become ``\\t``, ``\\n``, ``\\r`` and ``\\\\``."""
    return text.translate({ord("\\"): "\\\\", ord("\t"): "\\t", ord("\n"): "\\n", ord("\r"): "\\r"})
