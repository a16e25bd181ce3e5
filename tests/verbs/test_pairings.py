"""Whatever tasks, criteria and archs a recipe puts together: they train, or one line says why they cannot."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq2.composition import _register_library
from fairseq2.gang import create_fake_gangs
from fairseq2.recipe.component import ComponentManager, _StandardComponentManager
from fairseq2.recipe.error import RecipeError
from fairseq2.runtime.dependency import DependencyContainer

from d2v_plugin.core.batch import Batch
from d2v_plugin.core.contracts import StepInfo
from d2v_plugin.core.registry import ComponentSection, create, registered_names
from d2v_plugin.criteria.base import Criterion, CriterionSection
from d2v_plugin.criteria.supervised.base import SupervisedCriterion
from d2v_plugin.data.dataset import AudioManifest, ImageManifest, ManifestConfig, TextManifest
from d2v_plugin.data.sentences import Sentences, SentencesConfig
from d2v_plugin.data.tables import TableLayout
from d2v_plugin.evaluation.checkpoint import attach_criterion
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.models.families import FAMILIES, create_model
from d2v_plugin.tasks.audio import AudioPretrainingTask
from d2v_plugin.tasks.audio_classification import AudioClassificationConfig, AudioClassificationTask
from d2v_plugin.tasks.audio_settings import AudioPretrainingConfig
from d2v_plugin.tasks.base import Task, TaskSection
from d2v_plugin.tasks.image import ImagePretrainingConfig, ImagePretrainingTask, ImageReadingConfig
from d2v_plugin.tasks.image_classification import ImageClassificationConfig, ImageClassificationTask
from d2v_plugin.tasks.speech_recognition import SpeechRecognitionConfig, SpeechRecognitionTask
from d2v_plugin.tasks.text import TextPretrainingConfig, TextPretrainingTask
from d2v_plugin.tasks.text_classification import TextClassificationConfig, TextClassificationTask
from d2v_plugin.verbs.train.config import TrainConfig
from d2v_plugin.verbs.train.recipe import check_label_kind

MANIFESTS = Path(__file__).parents[2] / "manifests"
GANGS = create_fake_gangs(torch.device("cpu"))
CONTAINER = DependencyContainer()
_register_library(CONTAINER, no_progress=True)
CONTAINER.register_type(ComponentManager, _StandardComponentManager, singleton=True)
CRITERIA = sorted(registered_names(CONTAINER, Criterion))

IMAGE = ImageReadingConfig(size=32)
SPEECH: dict[str, Any] = {"max_num_elements": 40_000, "batches_per_update": 1}
TASKS = {
    "image_pretraining": (lambda: ImagePretrainingTask(ImagePretrainingConfig(batch_size=4, image=IMAGE)), "digits"),
    "image_classification": (lambda: ImageClassificationTask(ImageClassificationConfig(batch_size=4, image=IMAGE)), "digits"),
    "audio_pretraining": (lambda: AudioPretrainingTask(AudioPretrainingConfig(min_sample_size=4000, **SPEECH)), "words"),
    "audio_classification": (lambda: AudioClassificationTask(AudioClassificationConfig(**SPEECH)), "words"),
    "audio_classification with tags": (lambda: AudioClassificationTask(AudioClassificationConfig(tags=True, **SPEECH)), "tags"),
    "speech_recognition": (lambda: SpeechRecognitionTask(SpeechRecognitionConfig(**SPEECH)), "words"),
    "text_pretraining": (lambda: TextPretrainingTask(TextPretrainingConfig(batch_size=4, tokens_per_sample=100)), "books"),
    "text_classification": (lambda: TextClassificationTask(TextClassificationConfig(batch_size=4, max_length=100)), "book_pairs"),
}
FOLDERS: dict[str, Path] = {}
ARCHS = [(name, arch) for name, family in FAMILIES.items() for arch in family.archs if arch.endswith("_tiny")]

# What trains of all 9 x 8 x 6 pairings, by criterion and task: the archs.
SPEECH_ARCHS = ["audio_tiny", "data2vec1 audio_tiny", "multimodal_tiny"]
TEXT_ARCHS = ["data2vec1 text_tiny", "multimodal_tiny", "text_tiny"]
IMAGE_ARCHS = ["data2vec1 vision_tiny", "image_tiny", "multimodal_tiny"]
FITS = {
    ("classification", "image_classification"): IMAGE_ARCHS,
    ("classification", "audio_classification"): SPEECH_ARCHS,
    ("classification", "text_classification"): TEXT_ARCHS,
    ("ctc", "speech_recognition"): SPEECH_ARCHS,
    ("audio_tagging", "audio_classification with tags"): SPEECH_ARCHS,
}
for kind, archs in (("image", IMAGE_ARCHS), ("audio", SPEECH_ARCHS), ("text", TEXT_ARCHS)):
    only = {"image": "mae", "audio": "wav2vec2", "text": "masked_lm"}[kind]
    for task in TASKS:
        if task.startswith(kind) or (kind == "audio" and task == "speech_recognition"):
            FITS["data2vec1", task] = [arch for arch in archs if arch.startswith("data2vec1 ") and kind != "image"]  # its spans
            FITS["data2vec2", task] = FITS["last_layer_regression", task] = [arch for arch in archs if " " not in arch]
            FITS[only, task] = [f"{kind}_tiny"]


@cache
def open_dataset(name: str) -> Any:
    if name == "book_pairs":
        layout = TableLayout(texts=["first", "second"], label="book")
        return Sentences.open(SentencesConfig(path=MANIFESTS / name, vocabulary=MANIFESTS / "books", layout=layout))
    family: Any = {"digits": ImageManifest, "books": TextManifest}.get(name, AudioManifest)

    return family.open(ManifestConfig(path=FOLDERS.get(name, MANIFESTS / name), check_files=False))


@pytest.fixture(scope="module", autouse=True)
def tags(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The words as recordings with tags."""
    folder = FOLDERS["tags"] = tmp_path_factory.mktemp("tags")
    for split in ("train", "valid"):
        root, *lines = (MANIFESTS / "words" / f"{split}.tsv").read_text().splitlines()
        rows = [line.split("\t")[:2] for line in lines if not line.startswith("#")]
        text = "".join(f"{path}\t{size}\t{'a;b' if row % 2 else 'a'}\n" for row, (path, size) in enumerate(rows))
        (folder / f"{split}.tsv").write_text(f"{MANIFESTS / 'words' / root}\n#columns\tpath\tsize\ttags\n{text}")


@cache
def open_task(name: str) -> tuple[Task[Any, Any], Batch]:
    """A task, and a small batch that it reads."""
    make, dataset = TASKS[name]
    task: Task[Any, Any] = make().open(open_dataset(dataset), report=None)  # type: ignore[attr-defined]
    (batch, *_) = next(task.create_train_reader(GANGS, 1))

    return task, batch


def make_model(family: str, arch: str) -> EncoderModel:
    torch.manual_seed(0)
    return create_model(FAMILIES[family].archs[arch]())


def train(task: Task[Any, Any], batch: Batch, criterion_name: str, model: EncoderModel) -> None:
    """The steps of a run, in their order: the criterion is attached, the task looks at the model, an update is computed."""
    # The archs have four blocks, of which the defaults would take ten.
    settings = {"targets": {"num_layers": 2}} if criterion_name in ("data2vec1", "data2vec2") else {}
    section = CriterionSection(name=criterion_name, config=settings)
    structure(section)
    criterion = create(CONTAINER, Criterion, section)
    if isinstance(criterion, SupervisedCriterion):
        config = TrainConfig(task=TaskSection(name="the task"), criterion=section)
        check_label_kind(task, criterion, config)
    attach_criterion(model, criterion, task.labels)
    task.check_model(model)
    with torch.inference_mode():  # a validation may come before the first update
        model.extract_features(batch.inputs, batch.padding_mask, modality=batch.modality)
    output = criterion(model, batch, StepInfo(number=1, seed=1))
    output.loss.backward()
    assert output.loss.isfinite()


def structure(value: Any) -> None:
    """As a recipe's sections are read, those in others, too."""
    if isinstance(value, ComponentSection):
        value.structure(CONTAINER)
    for field in fields(value) if is_dataclass(value) else ():
        structure(getattr(value, field.name))


@pytest.mark.parametrize(("criterion", "task_name"), [(name, task) for name in CRITERIA for task in TASKS])
def test_a_pairing_trains_or_is_refused_in_one_line(criterion: str, task_name: str) -> None:
    task, batch = open_task(task_name)
    trained = []
    for family, arch in ARCHS:
        try:
            train(task, batch, criterion, make_model(family, arch))
            trained.append(arch if family == "data2vec" else f"{family} {arch}")
        except RecipeError as ex:
            assert "\n" not in str(ex).strip() and len(str(ex)) > 20

    assert sorted(trained) == FITS.get((criterion, task_name), [])
