"""Audio: reading recordings and other signals, or parts of them, as normalised waveforms."""

from __future__ import annotations

import io
import os
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from typing_extensions import override

from d2v_plugin.core.ranges import PositiveInt
from d2v_plugin.core.validation import Checked
from d2v_plugin.data.arrays import ARRAY_MAGIC, ArrayFile, MemoryFile
from d2v_plugin.data.bad_samples import SampleError
from d2v_plugin.data.ffmpeg import FFmpegFile
from d2v_plugin.data.files import Location, check_regular, copy_range, read_bytes
from d2v_plugin.data.headers import check_recording

Waveform = NDArray[np.float32]

_EPSILON = 1e-5
# Of signals of several channels, whose unit may be volts: only what is constant has less variance.
_SMALL_EPSILON = 1e-30
_UNKNOWN_FORMAT = 1


@dataclass(kw_only=True)
class AudioReadingConfig(Checked):
    """Settings of how recordings become waveforms."""

    sample_rate: PositiveInt = 16_000
    """Samples per second of what the model hears."""

    resample: bool = False
    """Convert recordings of other rates; otherwise they are refused."""

    normalize: bool = True
    """Give every utterance zero mean and unit variance, each channel for itself if there are several."""

    channels: PositiveInt = 1
    """Channels that the model takes: 1 = those of a recording are averaged, more = they are kept apart, and each recording must
    have as many."""


@dataclass(frozen=True)
class Recording:
    """A recording, as a manifest describes it."""

    location: Location

    size: int
    """Length in samples, at its own rate."""

    start: int = 0
    """First sample, at its own rate."""

    is_segment: bool = False
    """Whether the file may go on before or after; otherwise ``size`` is all of it."""

    rate: int | None = None
    """Samples per second; None = as the model wants it."""

    statistics: tuple[float, float] | None = None
    """Mean and variance of the utterance, which spare reading all of it to normalise a part."""


def read_recording(
    recording: Recording, config: AudioReadingConfig, offset: int = 0, length: int | None = None, out: Waveform | None = None
) -> Waveform:
    """Read ``length`` samples from ``offset`` on, counted at the model's rate. -> (length,) float32

    Several channels are averaged, or kept apart: (length, channels). Only what is needed is decoded if the recording has the
    model's rate and is either not normalised or averaged and comes with its statistics; otherwise all of it is, since mean and
    variance are those of the utterance.

    :param length: None = up to the end.
    :param out: (length,) or (length, channels), memory for the result.
    :raises SampleError: the file is not what the manifest says, or has no samples.
    :raises OSError: it is no regular file.
    :raises RuntimeError: it cannot be decoded.
    """
    if recording.size < 1:
        raise SampleError("The recording has no samples.")
    # Those of the manifest are of the mean of all channels.
    statistics, epsilon = (recording.statistics, _EPSILON) if config.channels == 1 else (None, _SMALL_EPSILON)
    partial = (
        length is not None and recording.rate in (None, config.sample_rate) and (statistics is not None or not config.normalize)
    )
    first, count = (recording.start + offset, length) if partial and length else (recording.start, recording.size)
    waveform = _decode(recording, config, first, count, out if partial else None)
    if recording.rate not in (None, config.sample_rate):
        waveform = soxr.resample(waveform, recording.rate, config.sample_rate)
    if config.normalize:
        mean, variance = statistics or measure(waveform)
        waveform -= np.float32(mean)
        waveform *= np.float32(1 / np.sqrt(variance + epsilon))
    if not partial and length is not None:
        waveform = waveform[offset : offset + length]
        # Resampling rounds the length, by one sample at most.
        waveform = np.pad(waveform, [(0, length - len(waveform)), *[(0, 0)] * (waveform.ndim - 1)])
    if out is not None and waveform is not out:
        out[...] = waveform

    return waveform if out is None else out


def measure(waveform: Waveform) -> tuple[Any, Any]:
    """Mean and (population) variance, in double precision, of each channel if there are several."""
    return waveform.mean(axis=0, dtype=np.float64), waveform.var(axis=0, dtype=np.float64)


def _decode(recording: Recording, config: AudioReadingConfig, first: int, count: int, out: Waveform | None) -> Waveform:
    with _open(recording.location) as file:
        _check(recording, config, file.samplerate, file.frames)
        check_recording(count, file.channels)
        file.seek(first)
        if config.channels not in (1, file.channels):
            raise SampleError(f"The file has {file.channels} channel(s), but `task.config.audio.channels` is {config.channels}.")
        # What is not averaged is decoded right into its place.
        place = out if file.channels == config.channels else None
        waveform: Waveform = file.read(count, dtype="float32", out=place)
        is_integer = file.subtype.startswith("PCM")
    if len(waveform) < count:
        raise SampleError(f"The file ends after {first + len(waveform)} samples, but should have {first + count}.")
    if not (is_integer or np.isfinite(waveform).all()):
        raise SampleError("The recording has samples that are not finite numbers.")
    if place is not None:
        return place

    return waveform if waveform.ndim == 1 or config.channels > 1 else waveform.mean(axis=1)


class _ReadOnce(soundfile.SoundFile):  # type: ignore[misc]  # has no types
    """A file of which one part is read. After a read soundfile searches the place it has reached: in FLAC, by decoding."""

    @override
    def seekable(self) -> bool:
        return False


@dataclass(frozen=True)
class SoundInfo:
    """What the header of a recording says."""

    frames: int

    samplerate: int | None
    """None = it does not say it, as arrays do not: the model's is meant."""

    channels: int
    format: str


def read_info(location: Location) -> SoundInfo:
    """
    :raises SampleError: it is no recording of a format that is read.
    :raises OSError: it is no regular file.
    """
    with _open(location) as file:
        return SoundInfo(file.frames, file.samplerate, file.channels, f"{file.format} {file.subtype}".strip())


def _open(location: Location) -> soundfile.SoundFile | MemoryFile:
    """Open a file, or a copy of what libsndfile would read by calling Python for every few kilobytes: a range, or an object."""
    is_file = location.size is None and not location.is_remote
    if is_file:
        check_regular(location.path)
    try:
        if is_file:
            return _ReadOnce(location.path)
        if sys.platform == "linux":
            return _ReadOnce(copy_range(location), closefd=False)
        return _ReadOnce(io.BytesIO(read_bytes(location)))
    except soundfile.LibsndfileError as error:
        is_its_own = location.size is None and os.path.splitext(location.path)[1][1:].upper() in soundfile.available_formats()
        if error.code != _UNKNOWN_FORMAT or is_its_own:
            raise
    data = read_bytes(location)
    return ArrayFile(data) if data.startswith(ARRAY_MAGIC) else FFmpegFile(location, data)


def _check(recording: Recording, config: AudioReadingConfig, rate: int | None, frames: int) -> None:
    expected = recording.rate or config.sample_rate
    if rate not in (None, expected):
        raise SampleError(f"The file has {rate} samples per second, but {expected} were expected.")
    if recording.start + recording.size > frames or not (recording.is_segment or recording.size == frames):
        raise SampleError(f"The file has {frames} samples, but the manifest says {recording.start + recording.size}.")
