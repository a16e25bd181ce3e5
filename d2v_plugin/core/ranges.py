"""The numbers that a setting may be, declared with its type: ``lr: Annotated[float, Range(">= 0")]``.

`fairseq2 recipe describe` and recipes/reference.md tell them. The classes of the configuration check them, and so does what reads
that page before anything heavy is imported, in the same words.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Final, get_args, get_type_hints

_BOUNDS: Final = {
    ">=": (operator.ge, "at least"),
    ">": (operator.gt, "greater than"),
    "<=": (operator.le, "at most"),
    "<": (operator.lt, "less than"),
}


@dataclass(frozen=True)
class Range:
    """Bounds of a number, and of each one in a list."""

    text: str
    """One bound or two: ``>= 1``, ``> 0, <= 1``; with ``or null`` behind them if null is what turns the setting off."""

    def find_mistake(self, name: str, value: object) -> str:
        """Say what is wrong with a setting; nothing if it is in the range, or no number."""
        text, *off = self.text.split(" or ")
        bounds = [bound.split(" ") for bound in text.split(", ")]
        for number in _numbers_in(value):
            # What is no number at all, NaN, is beyond every bound.
            if not all(_BOUNDS[sign][0](number, float(limit.replace(",", ""))) for sign, limit in bounds):
                words = " and ".join(f"{_BOUNDS[sign][1]} {limit}" for sign, limit in bounds)
                if [sign for sign, _ in bounds] == [">=", "<="]:
                    words = f"between {bounds[0][1]} and {bounds[1][1]}"
                return f"`{name}` must be {' or '.join([words, *off])}, but is {_show(number)}."

        return ""


PositiveInt = Annotated[int, Range(">= 1")]
NonNegativeInt = Annotated[int, Range(">= 0")]
PositiveFloat = Annotated[float, Range("> 0")]
NonNegativeFloat = Annotated[float, Range(">= 0")]
Probability = Annotated[float, Range(">= 0, <= 1")]
Share = Annotated[float, Range(">= 0, < 1")]
PositiveShare = Annotated[float, Range("> 0, <= 1")]
ProperShare = Annotated[float, Range("> 0, < 1")]


@cache
def find_ranges(kls: type[Any]) -> Mapping[str, Range]:
    """The ranges that the fields of a class declare."""
    found = {name: _find_range(hint) for name, hint in get_type_hints(kls, include_extras=True).items()}

    return {name: limits for name, limits in found.items() if limits is not None}


def _find_range(hint: object) -> Range | None:
    """The first range inside of a type: of ``PositiveInt | None``, of ``tuple[Share, Share]``."""
    return hint if isinstance(hint, Range) else next(filter(None, map(_find_range, get_args(hint))), None)


def _numbers_in(value: object) -> Iterator[float]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _numbers_in(item)
    elif isinstance(value, int | float):
        yield value


def _show(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) and abs(number) < 10**15 else f"{float(number)}"
