"""Memory for batches, used again once nobody holds the batch any more."""

from __future__ import annotations

import math
import sys
from threading import Lock

import numpy as np
from numpy.typing import NDArray

# The list of buffers, the variable that runs over it, and the argument of `getrefcount`.
_NUM_OWN_REFERENCES = 3


class Buffers:
    """Lends arrays to batches, from many threads.

    The system zeroes memory before it gives it to a process, and large blocks go back to it as soon as they are freed: for
    images that costs a tenth of reading them.
    """

    def __init__(self) -> None:
        self._buffers: list[NDArray[np.float32]] = []
        self._lock = Lock()

    def take(self, *shape: int) -> NDArray[np.float32]:
        """An array of this shape with anything in it; free again when nothing refers to it, neither views nor tensors."""
        size = math.prod(shape)
        with self._lock:
            small = None
            for buffer in self._buffers:
                if sys.getrefcount(buffer) > _NUM_OWN_REFERENCES:
                    continue
                if buffer.size >= size:
                    return buffer[:size].reshape(shape)
                small = buffer
            # A larger one takes the place of one too small, so that there are never more than are in use at a time.
            self._buffers = [buffer for buffer in self._buffers if buffer is not small]
            self._buffers.append(np.empty(size, dtype=np.float32))

            return self._buffers[-1].reshape(shape)
