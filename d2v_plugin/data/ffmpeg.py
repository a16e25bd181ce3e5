"""Sound in formats that libsndfile does not read and ffmpeg does (m4a, aac, webm, wma, amr, g722, …), through PyAV, an extra."""

from __future__ import annotations

import io
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from d2v_plugin.data.bad_samples import SampleError
from d2v_plugin.data.files import Location, read_bytes
from d2v_plugin.data.headers import check_recording

SUFFIXES: Final = frozenset({".m4a", ".aac", ".webm", ".mka", ".wma", ".amr", ".ac3", ".wv", ".tta", ".ape", ".g722"})
NAMELESS: Final = ".g722"
"""A format without a header, which only the name tells."""

# What ffmpeg calls them. It tries its hundred formats, and finds one of them in much that is no sound.
_FORMATS: Final = frozenset({"mov", "matroska", "aac", "asf", "amr", "ac3", "wv", "tta", "ape", "g722"})


class FFmpegFile:
    """A recording, read as those of soundfile are; decoded whole, since seeking in such formats is not exact to the sample."""

    subtype = ""

    def __init__(self, location: Location) -> None:
        """
        :raises SampleError: it is of none of these formats, damaged or too large, or PyAV is not installed.
        :raises OSError: it cannot be read.
        """
        try:
            import av
        except ImportError:
            raise SampleError(
                "libsndfile does not know the format; where it is m4a, aac, webm or the like: pip install av"
            ) from None
        name = NAMELESS[1:] if location.size is None and location.path.lower().endswith(NAMELESS) else None
        try:
            with av.open(io.BytesIO(read_bytes(location)), format=name) as container:
                self.format = container.format.name
                if _FORMATS.isdisjoint(self.format.split(",")) or not container.streams.audio:
                    raise SampleError("The format is not recognised, or it has no sound.")
                stream = container.streams.audio[0]
                self.samplerate, self.channels = stream.rate, stream.channels
                self._samples = _decode(container, stream, av.AudioResampler(format="fltp"))
        except av.FFmpegError as error:
            raise SampleError(f"ffmpeg cannot decode the recording: {error.strerror}") from None
        self.frames = len(self._samples)
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
        place: NDArray[np.float32] = np.empty_like(found) if out is None or len(found) < count else out
        place[...] = found
        return place


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
