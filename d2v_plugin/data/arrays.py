"""Arrays of NumPy (``.npy``), and signals that are read from memory as files of soundfile are."""

from __future__ import annotations

import io
import math
from typing import Any, Final

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from typing_extensions import Self

from d2v_plugin.data.bad_samples import SampleError
from d2v_plugin.data.headers import check_recording

ARRAY_MAGIC: Final = b"\x93NUMPY"
"""How files of NumPy (``.npy``) begin."""


def read_npy(data: bytes | bytearray) -> NDArray[Any]:
    """The array of a ``.npy`` file: a view of what is there, whatever the header claims.

    :raises SampleError: it is cut short, or holds objects.
    """
    file = io.BytesIO(data)
    try:
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(file)]
        shape, is_fortran, dtype = read_header(file)
        found = np.frombuffer(data, dtype, math.prod(shape), file.tell())
        return found.reshape(shape, order="F" if is_fortran else "C")
    except (ValueError, KeyError, TypeError) as ex:
        raise SampleError(f"The array cannot be read: {ex}") from ex


class MemoryFile:
    """A signal that is in memory."""

    subtype = ""

    def __init__(self, kind: str, rate: int | None, samples: NDArray[np.float32]) -> None:
        """
        :param rate: None = nothing says it.
        :param samples: (T, channels)
        """
        self.format = kind
        self.samplerate = rate
        self.frames, self.channels = samples.shape
        self._samples = samples
        self._place = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def seek(self, place: int) -> None:
        self._place = place

    def read(self, count: int, *, dtype: str, out: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """(count,) or (count, channels) samples."""
        found: NDArray[np.float32] = self._samples[self._place : self._place + count]
        found = found[:, 0] if self.channels == 1 else found
        place: NDArray[np.float32] = np.empty_like(found, order="C") if out is None or len(found) < count else out
        place[...] = found
        return place


class ArrayFile(MemoryFile):
    """A signal as an array (C, T), or (T,), of whole or floating-point numbers, which are taken as they are."""

    def __init__(self, data: bytes | bytearray) -> None:
        """
        :raises SampleError: it has another shape, holds something else, or is cut short.
        """
        values = read_npy(data)
        if values.dtype.kind not in "iuf" or values.ndim not in (1, 2) or not values.size:
            raise SampleError(
                f"The array has the shape {values.shape} and holds {values.dtype}, but a signal is numbers, (channels, samples)."
            )
        samples = np.atleast_2d(values).T
        check_recording(*samples.shape)
        super().__init__("NPY", None, samples.astype(np.float32))
