"""Speech recognition: recordings with transcripts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from fairseq2.datasets import DataReader
from fairseq2.gang import Gangs
from fairseq2.recipe.error import RecipeError
from typing_extensions import override

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.data.dataset import AudioManifest, expect_dataset
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.data.manifest import Problems
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
from d2v_plugin.tasks.audio import read_lengths
from d2v_plugin.tasks.labelled_audio import LabelledAudioConfig, LabelledAudioTask


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

    def __init__(self, config: SpeechRecognitionConfig) -> None:
        super().__init__(config)
        self._dataset: AudioManifest | None = None
        self._transcripts: dict[str, Transcripts] = {}

    @override
    def read_labels(self, dataset: object) -> LabelSet:
        recordings = expect_dataset(dataset, AudioManifest)

        return self._create_spelling(recordings).find_labels(find_lines(recordings).values())

    @override
    def create_train_reader(self, dataset: object, gangs: Gangs, seed: int) -> DataReader[Batch]:
        # What is wrong with any split is said before training, at once; evaluation minds its own split alone.
        recordings = expect_dataset(dataset, AudioManifest)
        self._read(recordings, find_lines(recordings))

        return super().create_train_reader(dataset, gangs, seed)

    @override
    def read_targets(self, dataset: AudioManifest, split: str) -> Transcripts:
        if self._dataset is not dataset or split not in self._transcripts:
            lines = Lines(dataset.split(split))
            if not lines.is_written():
                raise RecipeError(f"{lines.path} has no transcripts, but the split `{split}` is to be read with transcripts.")
            self._read(dataset, {split: lines})

        return self._transcripts[split]

    @override
    def check_model(self, model: EncoderModel) -> None:
        """
        :raises ManifestError: recordings have fewer frames than an alignment of their transcript needs.
        """
        if self._dataset is None:
            return
        problems = Problems()
        for split, transcripts in self._transcripts.items():
            lengths = read_lengths(self._dataset.split(split), self.config.audio)
            sizes, places = np.unique(lengths, return_inverse=True)
            num_frames = np.array([model.output_length(int(size), Modality.AUDIO) for size in sizes])[places]
            for row in np.flatnonzero(num_frames < transcripts.num_frames).tolist():
                message = (
                    f"the recording is too short for its transcript: {lengths[row]:,} samples give {num_frames[row]} frames, but "
                    f"{transcripts.num_frames[row]} are needed"
                )
                problems.add(transcripts.lines.path, transcripts.lines.line_of(row), message)
        problems.raise_if_any()

    def _read(self, dataset: AudioManifest, lines: dict[str, Lines]) -> None:
        if self._dataset is not dataset:
            self._dataset, self._transcripts = dataset, {}
        labels = self.labels or self.read_labels(dataset)
        self._transcripts |= read_transcripts(lines, self._create_spelling(dataset), labels)

    def _create_spelling(self, dataset: AudioManifest) -> Spelling:
        if self.config.units == "sentencepiece":
            return Pieces(self.config.sentencepiece or dataset.path / SENTENCEPIECE_FILE)
        dictionary = dataset.path / DICTIONARY_FILE

        return Characters(dictionary if dictionary.is_file() else None)
