"""How the inputs of a model are found and read: as its task did in training, without augmentation and labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Final, final

import numpy as np
import torch
from fairseq2.recipe.error import RecipeError
from typing_extensions import override

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.log import log
from d2v_plugin.data.audio import AudioReadingConfig
from d2v_plugin.data.batches import make_batch, pad
from d2v_plugin.data.dataset import AudioManifest, ImageManifest
from d2v_plugin.data.image import ImageReadingConfig, normalize
from d2v_plugin.data.manifest import Manifest
from d2v_plugin.data.manifest_text import Columns
from d2v_plugin.data.preparation.audio import SUFFIXES as AUDIO_SUFFIXES
from d2v_plugin.data.preparation.common import Report
from d2v_plugin.data.preparation.image import SUFFIXES as IMAGE_SUFFIXES
from d2v_plugin.data.preparation.walking import walk
from d2v_plugin.data.problems import Problems
from d2v_plugin.extraction.chunks import SAMPLE_RATE
from d2v_plugin.inference.lines import JSON_SUFFIXES, Lines, TextReading, collate_texts
from d2v_plugin.inference.samples import (
    ImageFiles,
    Joined,
    ManifestImages,
    ManifestRecordings,
    RecordingFiles,
    Samples,
    Unreadable,
)

MANIFEST_SUFFIX: Final = ".tsv"
_SUFFIXES: Final = {Modality.AUDIO: AUDIO_SUFFIXES, Modality.IMAGE: IMAGE_SUFFIXES}
_NAMES: Final = {Modality.AUDIO: "recordings", Modality.IMAGE: "images", Modality.TEXT: "text"}


class Reader(ABC):
    """Reads inputs of one modality."""

    modality: ClassVar[Modality]

    suffixes: frozenset[str]
    """Of the files that are taken from folders."""

    sample_rate: int = SAMPLE_RATE
    """Of recordings, as they are read."""

    max_num_elements: int | None = None
    """Longest sample times number of samples of a batch; None = any."""

    @abstractmethod
    def open_files(self, paths: Sequence[Path]) -> Samples:
        """Open files that exist.

        :raises OSError: one cannot be read.
        """

    @abstractmethod
    def open_manifest(self, path: Path) -> Samples:
        """
        :raises ManifestError: lines are wrong; names them all.
        """

    @abstractmethod
    def collate(self, samples: Sequence[Any], rows: Sequence[int]) -> Batch:
        """Put samples that were read into a batch with these ids."""

    @property
    def name(self) -> str:
        """What is read, in the plural."""
        return _NAMES[self.modality]


@final
class AudioReader(Reader):
    """Reads recordings; those of another rate are resampled."""

    modality = Modality.AUDIO
    suffixes = AUDIO_SUFFIXES

    def __init__(self, config: AudioReadingConfig, shortest: int, max_num_elements: int = 3_200_000) -> None:
        """
        :param shortest: samples that the model needs for one frame.
        """
        self.config = replace(config, resample=True)
        self.sample_rate = config.sample_rate
        self.max_num_elements = max_num_elements
        self._shortest = shortest

    @override
    def open_files(self, paths: Sequence[Path]) -> Samples:
        return RecordingFiles(paths, self.config, self._shortest)

    @override
    def open_manifest(self, path: Path) -> Samples:
        return ManifestRecordings(_open_manifest(path, AudioManifest.columns), self.config, self._shortest)

    @override
    def collate(self, samples: Sequence[Any], rows: Sequence[int]) -> Batch:
        return make_batch(Modality.AUDIO, pad(samples, np.float32), rows)


@final
class ImageReader(Reader):
    """Reads images."""

    modality = Modality.IMAGE
    suffixes = IMAGE_SUFFIXES

    def __init__(self, config: ImageReadingConfig) -> None:
        self.config = config

    @override
    def open_files(self, paths: Sequence[Path]) -> Samples:
        return ImageFiles(paths, self.config)

    @override
    def open_manifest(self, path: Path) -> Samples:
        return ManifestImages(_open_manifest(path, ImageManifest.columns), self.config)

    @override
    def collate(self, samples: Sequence[Any], rows: Sequence[int]) -> Batch:
        return Batch(Modality.IMAGE, normalize(samples, self.config), torch.tensor(rows))


@final
class TextReader(Reader):
    """Reads the lines of text files."""

    modality = Modality.TEXT
    suffixes = frozenset({".txt", MANIFEST_SUFFIX}) | JSON_SUFFIXES

    def __init__(self, reading: TextReading) -> None:
        self.reading = reading

    @override
    def open_files(self, paths: Sequence[Path]) -> Samples:
        return Joined([_open_lines(path, self.reading) for path in paths])

    @override
    def open_manifest(self, path: Path) -> Samples:
        return self.open_files([path])

    @override
    def collate(self, samples: Sequence[Any], rows: Sequence[int]) -> Batch:
        return collate_texts(samples, rows)


def find_samples(inputs: Sequence[Path], reader: Reader) -> Samples:
    """Find what there is to predict, in the order of the inputs; folders are walked through, their files sorted.

    What is no sample becomes a row that cannot be read, so that it is named and counted as those are.

    :raises RecipeError: an input does not exist, or the files of a manifest cannot be told from its lines.
    """
    found: list[Samples] = []
    # Files that stand side by side are opened together.
    for is_loose, group in groupby(inputs, key=lambda path: _is_loose(path, reader)):
        paths = [path.absolute() for path in group]
        found += [reader.open_files(paths)] if is_loose else [part for path in paths for part in _open_input(path, reader)]

    return Joined(found)


def _is_loose(path: Path, reader: Reader) -> bool:
    other = next((kind for kind, known in _SUFFIXES.items() if path.suffix.lower() in known), reader.modality)
    return path.is_file() and path.suffix.lower() != MANIFEST_SUFFIX and other is reader.modality


def _open_input(path: Path, reader: Reader) -> Iterator[Samples]:
    if path.is_dir():
        yield from _open_folder(path, reader)
    elif not path.exists():
        raise RecipeError(f"{path} does not exist.")
    elif path.suffix.lower() == MANIFEST_SUFFIX:
        yield reader.open_manifest(path)
    elif not path.is_file():
        yield Unreadable(path, "It is a pipe, socket or device, which is not read.")
    else:
        yield Unreadable(path, f"The model reads {reader.name}, but this is a file `{path.suffix}`.")


def _open_folder(folder: Path, reader: Reader) -> Iterator[Samples]:
    report = Report()
    files = [root / name for root, name in walk([folder], report)]
    for name, reason in report.dropped:
        log.warning("{}/{} is left out: {}.", folder, name, reason)
    suitable = [path for path in files if path.suffix.lower() in reader.suffixes]
    others = [path for path in files if path.suffix.lower() not in reader.suffixes]
    if suitable:
        if others:
            message = "{:,} files in {} are left out, because they are no {}, such as {}."
            log.info(message, len(others), folder, reader.name, others[0].name)
        yield reader.open_files(suitable)
        return
    listed = ", ".join(sorted(reader.suffixes))
    manifests = [path.name for path in others if path.suffix.lower() == MANIFEST_SUFFIX]
    hint = f" To read a manifest, name it: {', '.join(manifests[:5])}." if manifests else ""
    yield Unreadable(folder, f"The folder holds no {reader.name} ({listed}).{hint}")


def _open_lines(path: Path, reading: TextReading) -> Samples:
    try:
        lines = Lines(path, reading)
    except OSError as error:
        return Unreadable(path, error.strerror or str(error))
    return lines if len(lines) else Unreadable(path, "The file is empty.")


def _open_manifest(path: Path, columns: Columns) -> Manifest:
    """Open a manifest whose files are looked for when they are read, one by one."""
    problems = Problems()
    manifest = Manifest(path, columns, problems, check_files=False)
    problems.raise_if_any()
    return manifest
