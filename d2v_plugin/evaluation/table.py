"""Scores as a table."""

from __future__ import annotations

from collections.abc import Mapping

Scores = Mapping[str, Mapping[str, float]]
"""Scores by what was evaluated, then by name."""


def format_scores(scores: Scores) -> str:
    """One row for everything evaluated, one column for each score."""
    names = list(next(iter(scores.values())))
    first = max(len(name) for name in scores)
    widths = [max(len(name), 8) for name in names]
    lines = [" " * first + "".join(f"  {name:>{width}}" for name, width in zip(names, widths, strict=True))]
    for name, row in scores.items():
        cells = (f"  {value:>{width}.4f}" for value, width in zip(row.values(), widths, strict=True))
        lines.append(f"{name:<{first}}" + "".join(cells))

    return "\n".join(lines)
