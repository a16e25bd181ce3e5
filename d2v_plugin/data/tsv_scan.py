"""A text file in memory, and what stands in it: places of a byte, decimal numbers; found by NumPy, all at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from d2v_plugin.data.files import check_regular

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

_CACHED = 1 << 13
_MAX_DIGITS = 18
(_ZERO,) = b"0"


def read_file(path: Path) -> bytes:
    """The bytes of a file. They are not mapped: a file that is truncated in place would kill the process that looks at them.

    :raises OSError: it is no regular file, or cannot be read.
    """
    check_regular(path)
    return path.read_bytes()


def find_byte(buffer: NDArray[np.uint8], byte: int) -> IntArray:
    """(B,) -> (places,) where a byte occurs; by chunks, since comparing costs as much memory as the file has bytes."""
    step = 1 << 24
    found = [np.flatnonzero(buffer[at : at + step] == byte) + at for at in range(0, len(buffer), step)]
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def parse_numbers(buffer: NDArray[np.uint8], starts: IntArray, ends: IntArray, where: BoolArray) -> IntArray:
    """Parse the decimal number in each [start, end). (rows,) -> (rows,), -1 where there is none or ``where`` is false."""
    # By chunks that fit the processor's cache.
    chunks = [slice(first, first + _CACHED) for first in range(0, len(starts), _CACHED)]
    found = [_parse_chunk(buffer, starts[chunk], ends[chunk], where[chunk]) for chunk in chunks]
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


def _parse_chunk(buffer: NDArray[np.uint8], starts: IntArray, ends: IntArray, where: BoolArray) -> IntArray:
    values = np.where(where & (ends > starts) & (ends - starts <= _MAX_DIGITS), 0, -1)
    longest = int((ends - starts)[values == 0].max(initial=0))
    for digit in range(longest):
        active = np.flatnonzero((starts + digit < ends) & (values >= 0))
        digits = buffer[starts[active] + digit].astype(np.int64) - _ZERO
        values[active] = np.where((digits >= 0) & (digits <= 9), values[active] * 10 + digits, -1)
    return values
