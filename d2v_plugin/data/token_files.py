"""Runs of token ids in files, read where they are looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2v_plugin.data.files import Location, read_bytes


@dataclass(frozen=True)
class TokenFile:
    """A run of token ids. It is not mapped: a file that is truncated in place would kill the process that looks at it."""

    location: Location
    dtype: np.dtype[Any]
    count: int

    def __len__(self) -> int:
        return self.count

    def locate(self, start: int, stop: int) -> Location:
        """The place of tokens [start, stop)."""
        size = self.dtype.itemsize
        return Location(self.location.path, self.location.offset + start * size, (stop - start) * size)

    def __getitem__(self, part: slice) -> NDArray[Any]:
        """
        :raises OSError: the file cannot be read, or has become too short.
        """
        start, stop, _ = part.indices(self.count)
        if start >= stop:
            return np.empty(0, self.dtype)

        return np.frombuffer(read_bytes(self.locate(start, stop)), self.dtype)
