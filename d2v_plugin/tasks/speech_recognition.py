"""Speech recognition: recordings with transcripts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from fairseq2.datasets import DataReader
from fairseq2.gang import Gangs
from fairseq2.recipe.error import RecipeError
from typing_extensions import override

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.data.labels import LabelKind, LabelSet
from d2v_plugin.data.problems import Problems
from d2v_plugin.data.recordings import read_lengths
from d2v_plugin.data.text import SENTENCEPIECE_FILE
from d2v_plugin.data.transcripts import (
    DICTIONARY_FILE,
    Characters,
    Lines,
    Pieces,
    Spelling,
    Transcripts,
    find_lines,
    read_transcripts,
)
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.tasks.audio import LabelledAudioTask
from d2v_plugin.tasks.audio_settings import LabelledAudioConfig


@dataclass(kw_only=True)
class SpeechRecognitionConfig(LabelledAudioConfig):
    """Settings of ``speech_recognition``."""

    units: Literal["characters", "sentencepiece"] = "characters"
    """What transcripts are spelled in. The characters are those of ``dict.ltr.txt`` beside the manifests or, without that file,
    all that occur."""

    sentencepiece: Path | None = None
    """The SentencePiece model, if that spells; None = ``sentencepiece.model`` beside the manifests."""


class SpeechRecognitionTask(LabelledAudioTask):
    """Reads an ``audio_manifest`` with transcripts."""

    # Half a recording does not say the whole transcript.
    crops = False

    config: SpeechRecognitionConfig

    @property
    @override
    def label_kind(self) -> LabelKind:
        return "symbols"

    @override
    def _read_labels(self) -> LabelSet:
        return self._spelling.find_labels(find_lines(self.dataset).values())

    @override
    def create_train_reader(self, gangs: Gangs, seed: int) -> DataReader[Batch]:
        # What is wrong with any split is said before training, at once; evaluation minds its own split alone.
        self._read(find_lines(self.dataset))
        return super().create_train_reader(gangs, seed)

    @override
    def hash_data(self) -> str:
        lines = Lines(self.dataset.split(self.config.split))
        transcripts = "\n".join(lines.text(row) for row in range(len(lines)))
        return hashlib.sha256((super().hash_data() + transcripts).encode(errors="surrogateescape")).hexdigest()

    @override
    def read_targets(self, split: str) -> Transcripts:
        lines = Lines(self.dataset.split(split))
        if not lines.is_written():
            raise RecipeError(f"{lines.path} has no transcripts, but the split `{split}` is to be read with transcripts.")
        return self._read({split: lines})[split]

    @override
    def check_model(self, model: EncoderModel, splits: Iterable[str] | None = None) -> None:
        """
        :raises RecipeError: as for the base class.
        :raises ManifestError: recordings have fewer frames than an alignment of their transcript needs.
        """
        super().check_model(model, splits)
        problems = Problems()
        lines = find_lines(self.dataset) if splits is None else {split: Lines(self.dataset.split(split)) for split in splits}
        for split, transcripts in self._read(lines).items():
            lengths = read_lengths(self.dataset.split(split), self.config.audio)
            sizes, places = np.unique(lengths, return_inverse=True)
            num_frames = np.array([model.output_length(int(size), Modality.AUDIO) for size in sizes])[places]
            # Without any frame it is a bad sample, as in every task.
            for row in np.flatnonzero((num_frames < transcripts.num_frames) & (num_frames > 0)).tolist():
                message = (
                    f"the recording is too short for its transcript: {lengths[row]:,} samples give {num_frames[row]} frames, but "
                    f"{transcripts.num_frames[row]} are needed"
                )
                problems.add(*transcripts.lines.place_of(row), message)
        problems.raise_if_any()

    @cached_property
    def _transcripts(self) -> dict[str, Transcripts]:
        """Those read so far, by split, so that each is read once."""
        return {}

    def _read(self, lines: Mapping[str, Lines]) -> dict[str, Transcripts]:
        assert self.labels is not None
        new = {split: part for split, part in lines.items() if split not in self._transcripts}
        self._transcripts.update(read_transcripts(new, self._spelling, self.labels))
        return {split: self._transcripts[split] for split in lines}

    @cached_property
    def _spelling(self) -> Spelling:
        folder = self.dataset.path
        if self.config.units == "sentencepiece":
            return Pieces(self.config.sentencepiece or folder / SENTENCEPIECE_FILE)
        dictionary = folder / DICTIONARY_FILE
        return Characters(dictionary if dictionary.is_file() else None)
