"""Samples to predict: rows that are read one by one, from manifests, files, or lines of text."""

from __future__ import annotations

import hashlib
import json
import os
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, final

from typing_extensions import override

from d2v_plugin.core.storage import hash_file
from d2v_plugin.data.audio import AudioReadingConfig, Recording, read_info, read_recording
from d2v_plugin.data.bad_samples import SampleError
from d2v_plugin.data.files import Location
from d2v_plugin.data.image import ImageReadingConfig, fit
from d2v_plugin.data.image_decoding import decode
from d2v_plugin.data.manifest import Manifest
from d2v_plugin.data.recordings import read_lengths, recording_of


@dataclass(frozen=True)
class Place:
    """Where a sample lies."""

    path: str

    line: int | None = None
    """For text: the line it stands on, counted from 1."""

    offset: int | None = None
    """In an archive: its first byte …"""

    size: int | None = None
    """… and how many there are."""

    start: float | None = None
    """Of a segment of a recording: where it begins, in seconds."""

    def __str__(self) -> str:
        parts = [self.line] if self.line is not None else [self.offset, self.size]
        return ":".join([self.path, *(str(part) for part in parts if part is not None)])

    def describe(self) -> dict[str, Any]:
        """What is known, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class Samples(ABC):
    """Rows of one kind, read in any order and from many threads."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def place_of(self, row: int) -> Place: ...

    @abstractmethod
    def fingerprint(self) -> object:
        """Plain data that differ if other samples, or others in their place, are read."""

    def hash(self) -> str:
        """Tell these samples from others by a few characters."""
        return hashlib.sha256(json.dumps(self.fingerprint()).encode()).hexdigest()

    def measure(self, row: int) -> int:
        """About how long a sample is, so that those of similar length are read together; never fails."""
        return 1

    @abstractmethod
    def read(self, row: int) -> Any:
        """Read a sample.

        :raises SampleError, OSError, RuntimeError, ValueError: it cannot be read.
        """


@final
class Unreadable(Samples):
    """An input that is no sample: a row, so that it is named and counted among the others."""

    def __init__(self, path: Path, reason: str) -> None:
        self._path = path
        self._reason = reason

    @override
    def __len__(self) -> int:
        return 1

    @override
    def place_of(self, row: int) -> Place:
        return Place(str(self._path))

    @override
    def fingerprint(self) -> object:
        return [str(self._path), self._reason]

    @override
    def read(self, row: int) -> Any:
        raise SampleError(self._reason)


class Files(Samples):
    """A file for each row."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    @override
    def __len__(self) -> int:
        return len(self._paths)

    @override
    def place_of(self, row: int) -> Place:
        return Place(str(self._paths[row]))

    @override
    def fingerprint(self) -> object:
        return [[str(path), *_stamp(path)] for path in self._paths]


def _stamp(path: Path) -> list[int]:
    try:
        status = os.stat(path)
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


@final
class RecordingFiles(Files):
    """Recordings in files of their own."""

    def __init__(self, paths: Sequence[Path], config: AudioReadingConfig, shortest: int) -> None:
        super().__init__(paths)
        self._config = config
        self._shortest = shortest

    @override
    def measure(self, row: int) -> int:
        try:
            recording = self._open(row)
        except (OSError, RuntimeError, ValueError):
            return 1
        return max(1, recording.size * self._config.sample_rate // (recording.rate or 1))

    @override
    def read(self, row: int) -> Any:
        return check_length(read_recording(self._open(row), self._config), self._shortest)

    def _open(self, row: int) -> Recording:
        location = Location(str(self._paths[row]))
        info = read_info(location)
        return Recording(location, info.frames, rate=info.samplerate)


@final
class ImageFiles(Files):
    """Images in files of their own."""

    def __init__(self, paths: Sequence[Path], config: ImageReadingConfig) -> None:
        super().__init__(paths)
        self._config = config

    @override
    def read(self, row: int) -> Any:
        return fit(decode(Location(str(self._paths[row])), self._config.num_channels), self._config)


class ManifestRows(Samples):
    """The rows of a manifest, labels left aside."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    @override
    def __len__(self) -> int:
        return len(self._manifest)

    @override
    def place_of(self, row: int) -> Place:
        location = self._manifest.location(row)
        return Place(location.path, None, None if location.size is None else location.offset, location.size)

    @override
    def fingerprint(self) -> object:
        return [str(self._manifest.path.absolute()), hash_file(self._manifest.path)]


@final
class ManifestRecordings(ManifestRows):
    """The recordings of a manifest."""

    def __init__(self, manifest: Manifest, config: AudioReadingConfig, shortest: int) -> None:
        super().__init__(manifest)
        self._config = config
        self._shortest = shortest
        self._lengths = read_lengths(manifest, config)

    @override
    def place_of(self, row: int) -> Place:
        recording, place = recording_of(self._manifest, row), super().place_of(row)
        if not recording.is_segment:
            return place
        rate = recording.rate or self._config.sample_rate
        return Place(place.path, None, place.offset, place.size, recording.start / rate)

    @override
    def measure(self, row: int) -> int:
        return max(1, int(self._lengths[row]))

    @override
    def read(self, row: int) -> Any:
        return check_length(read_recording(recording_of(self._manifest, row), self._config), self._shortest)


@final
class ManifestImages(ManifestRows):
    """The images of a manifest."""

    def __init__(self, manifest: Manifest, config: ImageReadingConfig) -> None:
        super().__init__(manifest)
        self._config = config

    @override
    def read(self, row: int) -> Any:
        return fit(decode(self._manifest.location(row), self._config.num_channels), self._config)


@final
class Joined(Samples):
    """Samples of several inputs, one after the other."""

    def __init__(self, parts: Sequence[Samples]) -> None:
        self._parts = parts
        self._ends = list(accumulate(len(part) for part in parts))

    @override
    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @override
    def place_of(self, row: int) -> Place:
        part, row = self._find(row)
        return part.place_of(row)

    @override
    def fingerprint(self) -> object:
        return [part.fingerprint() for part in self._parts]

    @override
    def measure(self, row: int) -> int:
        part, row = self._find(row)
        return part.measure(row)

    @override
    def read(self, row: int) -> Any:
        part, row = self._find(row)
        return part.read(row)

    def _find(self, row: int) -> tuple[Samples, int]:
        number = bisect_right(self._ends, row)
        return self._parts[number], row - (self._ends[number - 1] if number else 0)


def check_length(waveform: Any, shortest: int) -> Any:
    """
    :raises SampleError: a model makes nothing of so short a recording.
    """
    if len(waveform) < shortest:
        raise SampleError(
            f"The recording is too short: {len(waveform):,} samples, but the model needs {shortest:,} for one frame."
        )
    return waveform
