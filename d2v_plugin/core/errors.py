"""Errors that several packages raise, and what caused an error."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Final

FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of errors that say that there was no room for what was written."""


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the file and everything that is wrong with it."""


class NewerFormatError(CheckpointError):
    """A newer version of this package wrote a checkpoint. It may be whole, so nobody passes over it."""


def causes(ex: BaseException | None, *, contexts: bool = False) -> Iterator[BaseException]:
    """An exception, what it was raised from, and so on; each once, although the interpreter can close a circle of them.

    :param contexts: go on with what was being handled where an exception was raised from nothing.
    """
    seen: set[int] = set()
    while ex is not None and id(ex) not in seen:
        seen.add(id(ex))
        yield ex
        ex = ex.__cause__ or (ex.__context__ if contexts else None)


def root_cause(ex: BaseException) -> BaseException:
    """The first of all causes."""
    *_, last = causes(ex)

    return last
