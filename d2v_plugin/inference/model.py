"""A trained model as Python has it: the network, its head, and how inputs are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, cast

import torch
from fairseq2.recipe.error import RecipeError
from torch import Tensor
from typing_extensions import override

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import LossOutput, StepInfo
from d2v_plugin.criteria.supervised.base import SupervisedCriterion
from d2v_plugin.data.bad_samples import SampleError
from d2v_plugin.data.preparation.audio import SUFFIXES as AUDIO_SUFFIXES
from d2v_plugin.data.preparation.image import SUFFIXES as IMAGE_SUFFIXES
from d2v_plugin.extraction.features import Extractor
from d2v_plugin.inference.engine import Engine, SampleBatches, answer_rows
from d2v_plugin.inference.lines import TextsInMemory
from d2v_plugin.inference.reading import Reader, TextReader, find_samples
from d2v_plugin.inference.results import Classification, Presenter, Result, Tags, Transcription
from d2v_plugin.inference.samples import Joined, Samples
from d2v_plugin.inference.settings import InputSettings
from d2v_plugin.models.base import EncoderModel, Features
from d2v_plugin.models.data2vec1.audio import Data2VecAudioModel
from d2v_plugin.models.data2vec1.text import Data2VecTextModel
from d2v_plugin.models.data2vec1.vision import Data2VecVisionModel
from d2v_plugin.models.data2vec2.model import Data2VecModel
from d2v_plugin.models.pooling import Pooling, resolve_layers
from d2v_plugin.scoring.answers import Answer, Estimate, Ranking, Tagging, Transcript

Input = str | Path | tuple[str, str]
"""A file, a folder or a manifest; for text models a text, the two texts of a pair, or the `Path` of a file of them."""

ResultT = TypeVar("ResultT", bound=Result)

CHUNK_SECONDS: Final = 60.0
"""Recordings longer than this are computed in chunks, unless something else is said."""

_METHODS: Final[dict[type[Answer], str]] = {Transcript: "transcribe", Ranking: "classify", Tagging: "tag", Estimate: "answer"}


@dataclass
class Usage:
    """What a trained model knows beside its weights."""

    origin: str
    """Where it comes from, for messages."""

    settings: InputSettings

    readers: dict[Modality, Reader] = field(default_factory=dict)
    """Those that have been opened."""


class TrainedModel(EncoderModel):
    """A network for use: :meth:`extract_features` as before, and methods that take files.

    The class of a model that was loaded is that of its network with this one before it, so parameters keep their names. Its head,
    if it has one, is the criterion that trained it, ``model.criterion``.
    """

    usage: Usage

    @override
    def forward(  # type: ignore[override]  # without a step nothing is trained
        self, inputs: Tensor | Batch, padding_mask: Tensor | StepInfo | None = None, *, modality: Modality | None = None
    ) -> Features | Tensor | LossOutput:
        """Compute what the head puts out, (N, C), or (N, S, C) at each frame; without a head the features.

        :param inputs: as for :meth:`extract_features`; or a batch, whose loss at the step given second is that of the criterion.
        """
        if isinstance(inputs, Batch):
            assert isinstance(padding_mask, StepInfo)
            return super().forward(inputs, padding_mask)
        assert not isinstance(padding_mask, StepInfo)
        if not isinstance(self.criterion, SupervisedCriterion):
            return self.extract_features(inputs, padding_mask, modality=modality)
        batch = Batch(self.resolve_modality(modality), inputs, torch.arange(len(inputs)), padding_mask)

        return self.criterion.apply_head(self.criterion.encode(self, batch))

    def transcribe(
        self, inputs: Input | Sequence[Input], *, batch_size: int = 32, chunk_seconds: float | None = CHUNK_SECONDS
    ) -> list[Transcription | None]:
        """Say what is said in recordings: text, confidence, and when each word is said.

        :param inputs: files, folders, manifests, or a list of these.
        :param batch_size: most recordings in a forward pass.
        :param chunk_seconds: recordings longer than this are computed in chunks that overlap; None = all are computed whole.
        :returns: one result for each recording, in the order of the inputs; None for one that cannot be read, which a warning
            names.
        :raises SampleError: none can be read.
        :raises RecipeError: an input does not exist.
        :raises TypeError: the model does something else; the message names the method.
        """
        return cast(list[Transcription | None], self._use(Transcript, inputs, batch_size, chunk_seconds))

    def classify(
        self,
        inputs: Input | Sequence[Input],
        *,
        top_k: int = 5,
        batch_size: int = 32,
        chunk_seconds: float | None = CHUNK_SECONDS,
    ) -> list[Classification | None]:
        """Name the class of each sample and its probability; otherwise as :meth:`transcribe`.

        :param inputs: for text models texts, or pairs of them; a `Path` is a file with one on each line.
        :param top_k: classes that are named, at most.
        """
        return cast(list[Classification | None], self._use(Ranking, inputs, batch_size, chunk_seconds, top_k=top_k))

    def tag(
        self,
        inputs: Input | Sequence[Input],
        *,
        threshold: float = 0.5,
        batch_size: int = 32,
        chunk_seconds: float | None = CHUNK_SECONDS,
    ) -> list[Tags | None]:
        """Name the tags of each recording that are at least as likely as ``threshold``; otherwise as :meth:`transcribe`."""
        return cast(list[Tags | None], self._use(Tagging, inputs, batch_size, chunk_seconds, threshold=threshold))

    def answer(
        self, inputs: Input | Sequence[Input], *, batch_size: int = 32, chunk_seconds: float | None = CHUNK_SECONDS
    ) -> list[Result | None]:
        """Say what the head says, whatever it is: numbers, and answers of criteria of your own; otherwise as :meth:`classify`."""
        return self._use(None, inputs, batch_size, chunk_seconds)

    def embed(
        self,
        inputs: Input | Sequence[Input],
        *,
        layer: int = -1,
        pooling: Pooling | Literal["none"] = "mean",
        batch_size: int = 32,
        chunk_seconds: float | None = CHUNK_SECONDS,
    ) -> Tensor | list[Tensor]:
        """Compute features of whole samples.

        :param inputs: as for :meth:`classify`.
        :param layer: a block, from 0, or from the last one, -1.
        :param pooling: one vector of each sample, ``mean``, ``statistics`` (mean and deviation) or ``cls``; or ``none``.
        :returns: (N, D) float32 on the CPU, NaN where a sample cannot be read; with ``none`` N × (S_n, D), empty there.
        :raises ValueError: there is no such block.
        """
        (number,) = resolve_layers([layer], self.num_layers)
        samples, reader = self._find(inputs)
        batches = SampleBatches(samples, reader, batch_size, self._dtype)
        extractor = Extractor(
            self, {"x": [number]}, pooling, torch.float32, self._device, False, chunk_seconds, reader.sample_rate
        )
        with self._evaluating():
            found = extractor.compute(batches.read(0, len(samples)))
        batches.refuse_nothing()
        rows = found["ids"].tolist()
        if pooling == "none":
            parts = dict(zip(rows, found["x"].split(found["lengths"].tolist()), strict=True))
            return [parts.get(row, found["x"][:0]) for row in range(len(samples))]
        x = torch.full((len(samples), found["x"].size(1)), torch.nan)
        x[rows] = found["x"]

        return x

    def _use(
        self,
        kind: type[Answer] | None,
        inputs: Input | Sequence[Input],
        batch_size: int,
        chunk_seconds: float | None,
        **presentation: Any,
    ) -> list[Result | None]:
        criterion = self._expect_head(kind)
        samples, reader = self._find(inputs)
        batches = SampleBatches(samples, reader, batch_size, self._dtype)
        engine = Engine(self, criterion, self._device, chunk_seconds, sample_rate=reader.sample_rate)
        presenter = Presenter(criterion, find_frame_seconds(self, reader), **presentation)
        found: list[Result | None] = [None] * len(samples)
        with self._evaluating():
            for row, answer in answer_rows(batches, engine, 0, len(samples)):
                found[row] = presenter.present(answer, samples.place_of(row))
        batches.refuse_nothing()

        return found

    def _expect_head(self, kind: type[Answer] | None) -> SupervisedCriterion[Any]:
        criterion, origin = self.criterion, self.usage.origin
        if not isinstance(criterion, SupervisedCriterion):
            raise TypeError(f"{origin} has no head here, so it predicts nothing; `embed` gives its features.")
        if kind is not None and not issubclass(criterion.answer_kls, kind):
            right = _METHODS.get(criterion.answer_kls, "answer")
            raise TypeError(f"{origin} cannot {_METHODS[kind]}; its method is `{right}`.")

        return criterion

    def _find(self, inputs: Input | Sequence[Input]) -> tuple[Samples, Reader]:
        listed = [inputs] if isinstance(inputs, str | Path | tuple) else list(inputs)
        if not listed:
            raise SampleError("There are no inputs.")
        modality = self._find_modality(listed[0])
        if modality not in self.usage.readers:
            self.usage.readers[modality] = self.usage.settings.open_reader(self, modality)
        reader = self.usage.readers[modality]
        if isinstance(reader, TextReader):
            return _find_texts(listed, reader), reader
        if wrong := [item for item in listed if isinstance(item, tuple)]:
            raise RecipeError(f"The model reads {reader.name}; a pair of texts is no input for it: {wrong[0]}.")

        return find_samples([Path(cast(str, item)) for item in listed], reader), reader

    def _find_modality(self, first: Input) -> Modality:
        taken = list(self.config.frontends)
        if len(taken) == 1:
            return taken[0]
        suffix = "" if isinstance(first, tuple) else Path(first).suffix.lower()
        named = Modality.IMAGE if suffix in IMAGE_SUFFIXES else Modality.AUDIO if suffix in AUDIO_SUFFIXES else Modality.TEXT

        return self.resolve_modality(named)

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(was_training)


class TrainedData2Vec(TrainedModel, Data2VecModel):
    """A model of data2vec 2.0, for use."""


class TrainedData2VecAudio(TrainedModel, Data2VecAudioModel):
    """A speech model of data2vec 1.0, for use."""


class TrainedData2VecText(TrainedModel, Data2VecTextModel):
    """A text model of data2vec 1.0, for use."""


class TrainedData2VecVision(TrainedModel, Data2VecVisionModel):
    """A vision model of data2vec 1.0, for use."""


_CLASSES: Final[dict[type[EncoderModel], Callable[..., TrainedModel]]] = {
    Data2VecModel: TrainedData2Vec,
    Data2VecAudioModel: TrainedData2VecAudio,
    Data2VecTextModel: TrainedData2VecText,
    Data2VecVisionModel: TrainedData2VecVision,
}


def make_usable(model: EncoderModel, usage: Usage) -> TrainedModel:
    """Give a model the methods that take files, in place."""
    model.__class__ = _CLASSES[type(model)]  # type: ignore[assignment]
    assert isinstance(model, TrainedModel)
    model.usage = usage

    return model


def find_frame_seconds(model: EncoderModel, reader: Reader) -> float | None:
    """Seconds from one frame to the next; None = nothing is heard."""
    config = model.config.frontends.get(Modality.AUDIO)
    rate = getattr(getattr(reader, "config", None), "sample_rate", None)
    return None if config is None or rate is None else config.samples_per_frame / rate


def _find_texts(inputs: Sequence[Input], reader: TextReader) -> Samples:
    parts: list[Samples] = []
    for item in inputs:
        if isinstance(item, Path):
            parts.append(find_samples([item], reader))
            continue
        texts = [item] if isinstance(item, str) else list(item)
        if isinstance(item, str) and len(item) < 256 and Path(item).is_file():
            raise RecipeError(f"`{item}` is a file: give `Path({item!r})` to read its lines, or its text.")
        parts.append(TextsInMemory([texts], reader.reading))

    return Joined(parts)
