"""Progress of long work: a bar where someone watches, else a line now and then."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from time import monotonic
from typing import Final, TypeVar

from rich.console import Console
from rich.progress import track

ItemT = TypeVar("ItemT")

_SECONDS: Final = 10.0
"""Between two lines."""


def show_progress(items: Iterable[ItemT], *, total: int | None, title: str) -> Iterator[ItemT]:
    """Yield the items, and tell on the standard error how far this is.

    :param total: how many there are; None = nobody knows.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        yield from track(items, title, total=total, console=console)
    else:
        yield from _print_progress(items, total=total, title=title)


def _print_progress(items: Iterable[ItemT], *, total: int | None, title: str) -> Iterator[ItemT]:
    start = monotonic()
    due = start + _SECONDS
    number = 0
    for number, item in enumerate(items, 1):
        yield item
        if (now := monotonic()) >= due:
            due = now + _SECONDS
            print(f"{title}: {_describe(number, total, now - start)}", file=sys.stderr, flush=True)
    if (seconds := monotonic() - start) >= _SECONDS:
        print(f"{title}: {number:,} in {_minutes(seconds)}", file=sys.stderr, flush=True)


def _describe(number: int, total: int | None, seconds: float) -> str:
    rate = number / seconds
    if total is None:
        return f"{number:,}, {rate:,.3g} a second"
    left = _minutes((total - number) / rate)

    return f"{number:,} of {total:,} ({100 * number / total:.0f} %), {rate:,.3g} a second, {left} left"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
