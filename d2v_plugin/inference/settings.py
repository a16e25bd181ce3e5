"""Settings of the run that trained a model, as those by which its inputs are read now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq2.recipe.error import RecipeError
from fairseq2.utils.structured import StandardValueConverter, StructureError

from d2v_plugin.core.batch import Modality
from d2v_plugin.core.errors import causes
from d2v_plugin.core.remote import place
from d2v_plugin.data.audio import AudioReadingConfig
from d2v_plugin.data.image import ImageReadingConfig
from d2v_plugin.data.sentences import SentencesConfig
from d2v_plugin.data.tables import GLUE, TableLayout
from d2v_plugin.data.tokenizers import holds_vocabulary, open_tokenizer
from d2v_plugin.inference.lines import TextReading
from d2v_plugin.inference.reading import AudioReader, ImageReader, Reader, TextReader
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.models.spectrograms import sees_spectrograms
from d2v_plugin.tasks.base import Task
from d2v_plugin.tasks.image import ImagePretrainingTask
from d2v_plugin.tasks.multimodal import MultimodalPretrainingTask
from d2v_plugin.tasks.text import TextPretrainingTask
from d2v_plugin.tasks.text_classification import TextClassificationTask


@dataclass(frozen=True)
class InputSettings:
    """What is known about the inputs of a model."""

    task: Task[Any, Any] | None
    """The run's, without a dataset; None = no run is known, and models of a modality all read alike."""

    dataset: Mapping[str, Any]
    """The ``config_overrides`` of the run's dataset, for text; empty = nothing is known."""

    vocabularies: Sequence[Path]
    """Folders that may hold the vocabulary of a text model; the first that does is taken."""

    def open_reader(self, model: EncoderModel, modality: Modality) -> Reader:
        """
        :raises RecipeError: the model does not take this modality, its task reads in a way of its own, or there is no vocabulary.
        """
        try:
            model.resolve_modality(modality)
        except ValueError as ex:
            raise RecipeError(f"The inputs are {modality.value}, which the model does not take. {ex}") from ex
        task = self._find_task(modality)
        match modality:
            case Modality.AUDIO:
                return _open_audio(model, task)
            case Modality.IMAGE:
                return _open_images(model, task)
            case Modality.TEXT:
                return TextReader(self._open_text(model, task))

    def _find_task(self, modality: Modality) -> Task[Any, Any] | None:
        tasks = self.task.tasks if isinstance(self.task, MultimodalPretrainingTask) else [self.task]
        return next((task for task in tasks if task is not None and task.modality is modality), None)

    def _open_text(self, model: EncoderModel, task: Task[Any, Any] | None) -> TextReading:
        frontend = model.config.frontends[Modality.TEXT]
        folder = next((folder for folder in self.vocabularies if holds_vocabulary(folder)), None)
        if folder is None:
            listed = " or ".join(map(str, self.vocabularies)) or "the model"
            raise RecipeError(
                f"There is no vocabulary in {listed}. Name the folder with the one that the model was pre-trained with: "
                "`dataset.config_overrides.vocabulary`, or `vocabulary` of `d2v_plugin.load`."
            )
        tokenizer, longest = open_tokenizer(folder), frontend.max_positions
        if tokenizer.vocabulary.size != frontend.vocab_size:
            raise RecipeError(
                f"The vocabulary in {folder} has {tokenizer.vocabulary.size:,} ids, but the model has {frontend.vocab_size:,}."
            )
        match task:
            case TextClassificationTask():
                layout = read_layout(self.dataset)
                return TextReading(tokenizer, layout.texts, layout.names, min(longest, task.config.max_length))
            case TextPretrainingTask():
                longest = min(longest, task.config.tokens_per_sample)
        return TextReading(tokenizer, max_length=longest)


def _open_audio(model: EncoderModel, task: Task[Any, Any] | None) -> AudioReader:
    shortest = model.shortest_input(Modality.AUDIO)
    if task is None:
        if sees_spectrograms(model.config):
            rate = model.config.frontends[Modality.AUDIO].sample_rate
            return AudioReader(AudioReadingConfig(sample_rate=rate, normalize=False), shortest)
        if (num_channels := model.config.frontends[Modality.AUDIO].num_channels) != 1:
            raise RecipeError(
                f"Nothing says how signals of {num_channels} channels are read: the model is of no run. Name a `task`."
            )
        return AudioReader(AudioReadingConfig(), shortest)
    config = getattr(task.config, "audio", None)
    if not isinstance(config, AudioReadingConfig):
        raise _own_way(task)

    return AudioReader(config, shortest, getattr(task.config, "max_num_elements", 3_200_000))


def _open_images(model: EncoderModel, task: Task[Any, Any] | None) -> ImageReader:
    if task is None:
        if (num_channels := model.config.frontends[Modality.IMAGE].num_channels) != 3:
            raise RecipeError(
                f"Nothing says how images of {num_channels} channel(s) are read: the model is of no run. Name a `task`."
            )
        return ImageReader(ImageReadingConfig(size=model.config.frontends[Modality.IMAGE].image_size))
    config = getattr(task.config, "image", None)
    if not isinstance(config, ImageReadingConfig):
        raise _own_way(task)
    if isinstance(task, ImagePretrainingTask):
        task.check_model(model, ())

    return ImageReader(config)


def _own_way(task: Task[Any, Any]) -> RecipeError:
    return RecipeError(f"`{type(task).__name__}` reads in a way of its own, by which single files and manifests cannot be read.")


def read_layout(dataset: Mapping[str, Any]) -> TableLayout:
    """What stands where in the tables of a run on sentences.

    :param dataset: the ``config_overrides`` of its dataset.
    :raises RecipeError: they are not valid.
    """
    try:
        config = StandardValueConverter().structure(dict(dataset), SentencesConfig)
    except StructureError as ex:
        raise RecipeError(f"`dataset.config_overrides`: {' '.join(str(cause) for cause in causes(ex))}") from ex
    assert isinstance(config, SentencesConfig)

    return config.layout or GLUE.get(config.glue or "", TableLayout())


def list_vocabularies(dataset: Mapping[str, Any], *before: Path | None) -> list[Path]:
    """Where the vocabulary of a text model may be.

    :param dataset: the ``config_overrides`` of the run's dataset, which come last.
    :param before: other folders, the first of which counts most.
    """
    # Of several modalities each has a section of its own.
    sections = [dataset, dataset.get("text") or {}]
    # Of several datasets all have the same.
    sections = [{**section, **(section.get("parts") or [{}])[0]} for section in sections]
    known = [section.get(name) for section in sections for name in ("vocabulary", "path")]
    return [folder for folder in before if folder is not None] + [place(str(folder)) for folder in known if folder is not None]
