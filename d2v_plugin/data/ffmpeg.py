"""Sound in formats that libsndfile does not read and ffmpeg does (m4a, aac, webm, wma, amr, g722, …), through PyAV, an extra."""

from __future__ import annotations

import io
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from d2v_plugin.data.arrays import MemoryFile
from d2v_plugin.data.bad_samples import SampleError
from d2v_plugin.data.files import Location
from d2v_plugin.data.headers import check_recording

SUFFIXES: Final = frozenset({".m4a", ".aac", ".webm", ".mka", ".wma", ".amr", ".ac3", ".wv", ".tta", ".ape", ".g722"})
NAMELESS: Final = ".g722"
"""A format without a header, which only the name tells."""

# What ffmpeg calls them. It tries its hundred formats, and finds one of them in much that is no sound.
_FORMATS: Final = frozenset({"mov", "matroska", "aac", "asf", "amr", "ac3", "wv", "tta", "ape", "g722"})


class FFmpegFile(MemoryFile):
    """A recording, decoded whole, since seeking in such formats is not exact to the sample."""

    def __init__(self, location: Location, data: bytes | bytearray) -> None:
        """
        :param data: what is there.
        :raises SampleError: it is of none of these formats, damaged or too large, or PyAV is not installed.
        """
        try:
            import av
        except ImportError:
            raise SampleError(
                "libsndfile does not know the format; where it is m4a, aac, webm or the like: pip install av"
            ) from None
        name = NAMELESS[1:] if location.size is None and location.path.lower().endswith(NAMELESS) else None
        try:
            with av.open(io.BytesIO(data), format=name) as container:
                kind = container.format.name
                if _FORMATS.isdisjoint(kind.split(",")) or not container.streams.audio:
                    raise SampleError("The format is not recognised, or it has no sound.")
                stream = container.streams.audio[0]
                super().__init__(kind, stream.rate, _decode(container, stream, av.AudioResampler(format="fltp")))
        except av.FFmpegError as error:
            raise SampleError(f"ffmpeg cannot decode the recording: {error.strerror}") from None


def _decode(container: Any, stream: Any, resampler: Any) -> NDArray[np.float32]:
    """(T, channels), between -1 and 1."""
    parts, total = [np.empty((0, stream.channels), dtype=np.float32)], 0
    for frame in container.decode(stream):
        if frame.sample_rate != stream.rate or frame.layout.nb_channels != stream.channels:
            raise SampleError("The rate or the number of channels changes within the recording.")
        total += frame.samples
        check_recording(total, stream.channels)
        parts += [part.to_ndarray().T for part in resampler.resample(frame)]

    samples: NDArray[np.float32] = np.concatenate(parts)
    return samples
