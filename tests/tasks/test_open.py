"""A task is opened once: its labels are read once, and reports name samples by file and line whatever the task is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq2.gang import create_fake_gangs

from d2v_plugin.cli.main import main
from d2v_plugin.core.batch import Batch
from d2v_plugin.core.contracts import LossOutput
from d2v_plugin.data.composed_readers import name_sample
from d2v_plugin.data.dataset import AudioManifest, ImageManifest, ManifestConfig
from d2v_plugin.data.sentences import Sentences, SentencesConfig
from d2v_plugin.data.tables import TableLayout
from d2v_plugin.data.transcripts import Characters, Lines
from d2v_plugin.models.data2vec2.archs import ARCHS
from d2v_plugin.models.data2vec2.model import Data2VecModel
from d2v_plugin.tasks.audio_classification import AudioClassificationConfig, AudioClassificationTask
from d2v_plugin.tasks.base import Task
from d2v_plugin.tasks.image_classification import ImageClassificationConfig, ImageClassificationTask
from d2v_plugin.tasks.speech_recognition import SpeechRecognitionConfig, SpeechRecognitionTask
from d2v_plugin.tasks.text_classification import TextClassificationConfig, TextClassificationTask
from d2v_plugin.training.health.incidents import Incidents

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "manifests"
GANGS = create_fake_gangs(torch.device("cpu"))


def open_images() -> Task[Any, Any]:
    return ImageClassificationTask(ImageClassificationConfig(batch_size=8)).open(
        ImageManifest.open(ManifestConfig(path=MANIFESTS / "digits")), report=None
    )


def open_recordings() -> Task[Any, Any]:
    config = AudioClassificationConfig(max_num_elements=100_000, batches_per_update=1)

    return AudioClassificationTask(config).open(AudioManifest.open(ManifestConfig(path=MANIFESTS / "words")), report=None)


def open_sentences() -> Task[Any, Any]:
    layout = TableLayout(texts=["first", "second"], label="book")
    dataset = Sentences.open(SentencesConfig(path=MANIFESTS / "book_pairs", vocabulary=MANIFESTS / "books", layout=layout))

    return TextClassificationTask(TextClassificationConfig(batch_size=8)).open(dataset, report=None)


@pytest.mark.parametrize("task", [open_images(), open_recordings(), open_sentences()], ids=lambda task: type(task).__name__)
def test_a_report_of_fine_tuning_names_file_and_line(task: Task[Any, Any], tmp_path: Path) -> None:
    reader = task.create_train_reader(GANGS, 1)
    (batch,) = next(reader)
    incidents = Incidents(tmp_path, 0, lambda modality, sample: name_sample(reader, modality, sample))
    incidents.after_forward(batch, LossOutput(torch.zeros(()), num_targets=1))
    incidents.add(1, "spike", norm=1.0, losses=[1.0])
    rows = [line.split("\t") for line in (tmp_path / "suspects" / "rank_0.tsv").read_text().splitlines()[1:]]

    assert [int(row[5]) for row in rows] == batch.ids.tolist()
    for row, label in zip(rows, read_names(task, batch), strict=True):
        path, line = row[6].split(":")[:2]
        assert label in Path(path).read_text().splitlines()[int(line) - 1].split("\t")
        assert int(line) > int(row[5]) + 1, "the number of the row is taken for the line"


def read_names(task: Task[Any, Any], batch: Batch) -> list[str]:
    assert task.labels is not None and batch.labels is not None

    return [task.labels.names[label] for label in batch.labels.tolist()]


def test_training_reads_the_labels_of_a_dataset_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Task[Any, Any]] = []
    read = ImageClassificationTask._read_labels
    monkeypatch.setattr(ImageClassificationTask, "_read_labels", lambda task: reads.append(task) or read(task))
    settings = ["init.path=null", "regime={num_steps: 1}", "pictures.enabled=false", "common.torch.num_threads=1"]
    recipe = ROOT / "recipes" / "demo" / "finetune_digits.yaml"

    assert main(["recipe", "train", "--config-file", str(recipe), str(tmp_path / "run"), "--config", *settings]) in (0, None)
    assert len(reads) == 1


def test_transcripts_are_spelled_for_their_symbols_and_for_their_numbers_and_not_again(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = AudioManifest.open(ManifestConfig(path=MANIFESTS / "words"))
    spelled: list[str] = []
    spell = Characters.spell
    monkeypatch.setattr(Characters, "spell", lambda self, text: spelled.append(text) or spell(self, text))
    task = SpeechRecognitionTask(SpeechRecognitionConfig()).open(dataset, report=None)
    task.create_train_reader(GANGS, 1)
    task.create_labelled_reader(GANGS, "valid")
    task.check_model(Data2VecModel(ARCHS["audio_tiny"]()))

    assert len(spelled) == 2 * sum(len(split) for split in dataset.splits.values() if Lines(split).is_written())
