"""Speech recognition and audio classification: how recordings and their labels are read."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from fairseq2.gang import Gangs, create_fake_gangs
from fairseq2.recipe.error import RecipeError

from d2v_plugin.core.batch import Batch
from d2v_plugin.data.dataset import AudioManifest, ManifestConfig
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.data.problems import ManifestError
from d2v_plugin.data.transcripts import BLANK, join_symbols
from d2v_plugin.models.data2vec2.archs import ARCHS
from d2v_plugin.models.data2vec2.model import Data2VecModel
from d2v_plugin.tasks.audio import LabelledAudioTask
from d2v_plugin.tasks.audio_classification import AudioClassificationConfig, AudioClassificationTask
from d2v_plugin.tasks.speech_recognition import SpeechRecognitionConfig, SpeechRecognitionTask

WORDS = Path(__file__).parents[2] / "manifests" / "words"


def make_gangs(rank: int = 0, size: int = 1) -> Gangs:
    gangs = create_fake_gangs(torch.device("cpu"))
    object.__setattr__(gangs, "dp", type(gangs.dp)(torch.device("cpu"), rank=rank, size=size))

    return gangs


def open_words() -> AudioManifest:
    return AudioManifest.open(ManifestConfig(path=WORDS))


def read_all(task: LabelledAudioTask, dataset: AudioManifest, split: str, rank: int = 0, size: int = 1) -> list[Batch]:
    # Not through the reader itself, which would wait for the other ranks.
    reader = task.open(dataset, report=None).create_labelled_reader(make_gangs(rank, size), split)
    return list(reader._reader._pipeline)  # type: ignore[attr-defined]


def write_recordings(folder: Path, columns: str, rows: list[tuple[object, ...]]) -> AudioManifest:
    """Rows are (size, …)."""
    random = np.random.default_rng(0)
    lines = [".", f"#columns\tpath\tsize\t{columns}"]
    for number, (size, *rest) in enumerate(rows):
        soundfile.write(folder / f"{number}.wav", random.uniform(-0.5, 0.5, int(str(size))), 16_000)
        lines.append("\t".join(map(str, (f"{number}.wav", size, *rest))))
    (folder / "train.tsv").write_text("\n".join(lines) + "\n")

    return AudioManifest.open(ManifestConfig(path=folder))


def test_training_batches_are_whole_recordings_with_their_transcripts() -> None:
    dataset = open_words()
    config = SpeechRecognitionConfig(batches_per_update=2, max_num_elements=100_000)
    task = SpeechRecognitionTask(config).open(dataset, report=None)
    assert task.labels is not None
    manifest = dataset.split("train")
    reader = task.create_train_reader(make_gangs(), 1)

    for batch in (batch for _ in range(4) for batch in next(reader)):
        assert batch.inputs.numel() <= 100_000
        assert batch.padding_mask is not None and batch.labels is not None and batch.label_lengths is not None
        assert (~batch.padding_mask).sum(-1).tolist() == manifest.integers("size")[batch.ids].tolist()
        for row, symbols, count in zip(batch.ids.tolist(), batch.labels, batch.label_lengths.tolist(), strict=True):
            assert join_symbols(task.labels.names[symbol] for symbol in symbols[:count]) == manifest.text("label", row)


@pytest.mark.parametrize("size", [1, 2])
def test_a_labelled_split_is_read_once_by_all_ranks_together(size: int) -> None:
    dataset = open_words()
    task = SpeechRecognitionTask(SpeechRecognitionConfig(max_num_elements=100_000))
    found = [batch for rank in range(size) for batch in read_all(task, dataset, "valid", rank, size)]

    assert sorted(row for batch in found for row in batch.ids.tolist()) == list(range(120))
    # Recordings of similar length come together: little is padding.
    padded = sum(int(batch.padding_mask.sum()) for batch in found if batch.padding_mask is not None)
    assert padded < 0.1 * sum(batch.inputs.numel() for batch in found)


def test_recordings_too_long_are_left_out_of_recognition_and_cropped_for_classification(tmp_path: Path) -> None:
    dataset = write_recordings(tmp_path, "label", [(8000, "a"), (16_000, "b")])
    common = {"batches_per_update": 1, "max_num_elements": 20_000, "max_sample_size": 10_000}
    recognition = SpeechRecognitionTask(SpeechRecognitionConfig(**common))  # type: ignore[arg-type]
    classification = AudioClassificationTask(AudioClassificationConfig(**common))  # type: ignore[arg-type]

    reader = recognition.open(dataset, report=None).create_train_reader(make_gangs(), 1)
    assert {tuple(next(reader)[0].ids.tolist()) for _ in range(3)} == {(0,)}
    reader = classification.open(dataset, report=None).create_train_reader(make_gangs(), 1)
    first, second = next(reader)[0], next(reader)[0]
    assert first.inputs.shape == second.inputs.shape == (2, 10_000)
    rows = [batch.ids.tolist().index(1) for batch in (first, second)]
    assert not torch.equal(first.inputs[rows[0]], second.inputs[rows[1]]), "crops should move from epoch to epoch"
    with pytest.raises(RecipeError, match=r"All recordings .* are longer than"):
        recognition.config.max_sample_size = 100
        recognition.open(dataset, report=None).create_train_reader(make_gangs(), 1)


def test_recordings_too_short_for_their_transcripts_are_all_named(tmp_path: Path) -> None:
    """An utterance needs a frame per symbol and one between equal ones, after the convolutions."""
    # 400 samples give the first frame, 320 each further one: 1,680 give 5.
    said = [(1680, "four"), (1680, "fourt"), (1680, "feet"), (1999, "feet"), (2000, "feet")]
    # A recording without any frame is a bad sample, in every task.
    dataset = write_recordings(tmp_path, "label", [*said, (399, "x"), (400, "x")])
    task = SpeechRecognitionTask(SpeechRecognitionConfig()).open(dataset, report=None)
    model = Data2VecModel(ARCHS["audio_tiny"]())

    with pytest.raises(ManifestError) as caught:
        task.check_model(model)
    message = str(caught.value)

    assert re.findall(r"train\.tsv:(\d+):", message) == ["4", "5", "6", "9"]
    assert "the recording is too short for its transcript: 1,680 samples give 5 frames, but 6 are needed" in message
    assert "400 samples give 1 frames, but" in message
    task.check_model(model, splits=[])
    with pytest.raises(ManifestError):
        task.check_model(model, splits=["train"])


def test_a_checkpoints_vocabulary_is_kept_and_other_symbols_are_reported(tmp_path: Path) -> None:
    dataset = write_recordings(tmp_path, "label", [(8000, "bad"), (8000, "dab"), (8000, "cab")])
    labels = LabelSet([BLANK, "|", "d", "a", "b"])
    task = SpeechRecognitionTask(SpeechRecognitionConfig()).open(dataset, report=None, labels=labels)

    with pytest.raises(ManifestError, match=r"1 bad line.*\n.*train\.tsv:5: .*outside the vocabulary \(4 symbols\): c"):
        task.create_labelled_reader(make_gangs(), "train")


def test_training_checks_all_splits_at_once_and_evaluation_its_own(tmp_path: Path) -> None:
    write_recordings(tmp_path, "label", [(8000, "bad"), (8000, "cab")])
    (tmp_path / "test.tsv").write_text(".\n0.wav\t8000\tdab\n1.wav\t8000\tabe\n")
    (tmp_path / "clean.tsv").write_text(".\n0.wav\t8000\tbad\n")
    dataset = AudioManifest.open(ManifestConfig(path=tmp_path))
    labels = LabelSet([BLANK, "|", "d", "a", "b"])
    task = SpeechRecognitionTask(SpeechRecognitionConfig()).open(dataset, report=None, labels=labels)

    with pytest.raises(ManifestError, match="2 bad line"):
        task.create_train_reader(make_gangs(), 1)
    with pytest.raises(ManifestError, match="1 bad line"):
        task.create_labelled_reader(make_gangs(), "test")
    task.create_labelled_reader(make_gangs(), "clean")


def test_a_split_without_transcripts_is_refused_where_they_are_needed(tmp_path: Path) -> None:
    write_recordings(tmp_path, "label", [(8000, "bad")])
    (tmp_path / "test.tsv").write_text(".\n0.wav\t8000\n")
    task = SpeechRecognitionTask(SpeechRecognitionConfig())

    with pytest.raises(RecipeError, match=r"test\.tsv has no transcripts"):
        task.open(AudioManifest.open(ManifestConfig(path=tmp_path)), report=None).create_labelled_reader(make_gangs(), "test")


def test_classes_are_read_as_numbers_of_the_declared_ones() -> None:
    dataset = open_words()
    task = AudioClassificationTask(AudioClassificationConfig(max_num_elements=100_000))
    labels = task.open(dataset, report=None).labels
    assert labels is not None and labels.names == ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    (batch, *_) = read_all(task, dataset, "valid")
    expected = [labels.indices[str(dataset.split("valid").text("label", row))] for row in batch.ids.tolist()]

    assert batch.labels is not None and batch.labels.tolist() == expected


def test_a_recording_may_have_any_number_of_tags(tmp_path: Path) -> None:
    dataset = write_recordings(tmp_path, "tags", [(8000, "speech;music"), (8000, ""), (8000, "rain, distant")])
    task = AudioClassificationTask(AudioClassificationConfig(tags=True))
    labels = task.open(dataset, report=None).labels
    assert labels is not None and labels.names == ["music", "rain, distant", "speech"]
    (batch,) = read_all(task, dataset, "train")

    assert batch.labels is not None
    rows = dict(zip(batch.ids.tolist(), batch.labels.tolist(), strict=True))
    assert rows == {0: [1.0, 0.0, 1.0], 1: [0.0, 0.0, 0.0], 2: [0.0, 1.0, 0.0]}


def test_labels_and_tags_outside_the_set_are_all_named(tmp_path: Path) -> None:
    dataset = write_recordings(
        tmp_path, "label\ttags", [(8000, "cat", "cat;dog"), (8000, "dog", "cow;cat;hen"), (8000, "cow", "hen")]
    )
    for task, lines in (
        (AudioClassificationTask(AudioClassificationConfig(tags=True)), ["4", "5"]),
        (AudioClassificationTask(AudioClassificationConfig()), ["5"]),
    ):
        opened = task.open(dataset, report=None, labels=LabelSet(["cat", "dog"]))
        with pytest.raises(ManifestError) as caught:
            opened.create_labelled_reader(make_gangs(), "train")
        assert re.findall(r"train\.tsv:(\d+):", str(caught.value)) == lines
