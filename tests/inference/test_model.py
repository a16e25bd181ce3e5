"""A trained model in Python: what it can do is said by its head; files in any number, good and bad, become results in order."""

from __future__ import annotations

import copy
import logging
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from fairseq2.recipe.error import RecipeError
from torchvision.io import write_png

import d2v_plugin
from d2v_plugin.core.batch import Modality
from d2v_plugin.data.bad_samples import SampleError
from d2v_plugin.inference.model import TrainedModel
from d2v_plugin.models.data2vec2.model import Data2VecModel
from d2v_plugin.weights.directory import HEAD_FILE

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sounds(tmp_path: Path) -> list[Path]:
    """Recordings of different length and rate; the second is none."""
    paths = [tmp_path / f"{number}.wav" for number in range(4)]
    for number, path in enumerate(paths):
        rate = 16_000 if number % 2 else 22_050
        sound = 0.1 * np.random.default_rng(number).normal(size=int(rate * (1 + 0.3 * number)))
        soundfile.write(path, sound, rate)
    paths[1].write_text("no sound")

    return paths


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What is logged."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("fairseq2")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_recordings_are_transcribed_in_order(with_head: Any, sounds: list[Path], said: list[str]) -> None:
    model = d2v_plugin.load(with_head("transcripts"))

    found = model.transcribe(sounds)

    assert found[1] is None and any(line.startswith(f"{sounds[1]} is left out: ") for line in said)
    for path, result in zip(sounds, found, strict=True):
        if result is not None:
            assert result.path == str(path) and result.text == " ".join(word.word for word in result.words)
    # One at a time, and as what the head puts out.
    (alone,) = model.transcribe(sounds[3])
    assert alone is not None and found[3] is not None and alone.text == found[3].text != ""
    assert alone.confidence == pytest.approx(found[3].confidence, abs=1e-5)
    logits = model(d2v_plugin.read_audio(sounds[3]))
    assert logits.shape[0] == 1 and logits.shape[2] == 17
    assert alone.words[0].start == pytest.approx(int((logits[0].argmax(-1) > 1).nonzero()[0]) * 0.02)


def test_images_are_classified_from_a_folder(with_head: Any, tmp_path: Path) -> None:
    for number in range(3):
        write_png(torch.randint(256, (3, 40, 50), dtype=torch.uint8), str(tmp_path / f"{number}.png"))
    model = d2v_plugin.load(str(with_head("classes")))

    found = model.classify(tmp_path, top_k=3)

    assert [Path(result.path).name for result in found if result is not None] == ["0.png", "1.png", "2.png"]
    image = d2v_plugin.read_image(tmp_path / "1.png", size=32, eval_resize=1.0)
    shares, order = model(image).softmax(dim=1).topk(3)
    assert found[1] is not None and found[1].label == found[1].classes[0][0] == "0123456789"[int(order[0, 0])]
    assert [share for _, share in found[1].classes] == pytest.approx(shares[0].tolist(), abs=1e-5)


def test_recordings_are_tagged(with_head: Any, sounds: list[Path]) -> None:
    model = d2v_plugin.load(with_head("tags"))

    everything = [result for result in model.tag(sounds, threshold=0.0) if result is not None]
    likely = [result for result in model.tag(sounds) if result is not None]

    assert all({tag for tag, _ in result.tags} == {"e", "o", "x"} for result in everything)
    for few, many in zip(likely, everything, strict=True):
        assert list(few.tags) == [(tag, share) for tag, share in many.tags if share >= 0.5]


def test_texts_pairs_and_files_of_them(with_head: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pairs.tsv").write_text("a word\tits meaning\nan apple\ta fruit\n")
    model = d2v_plugin.load(with_head("pairs"))

    found = model.classify([("a word", "its meaning"), Path("pairs.tsv")])
    (single,) = model.classify(("an apple", "a fruit"))

    assert len(found) == 3 and found[0] is not None and found[1] is not None and found[2] is not None and single is not None
    assert found[0].confidence == pytest.approx(found[1].confidence, abs=1e-6) and found[1].place.line == 1
    assert found[2].confidence == pytest.approx(single.confidence, abs=1e-6)
    with pytest.raises(SampleError, match="The model takes a pair of texts, but here are 1"):
        model.classify("one text")
    with pytest.raises(RecipeError, match=r"`pairs\.tsv` is a file: give `Path\('pairs\.tsv'\)`"):
        model.classify("pairs.tsv")
    (number,) = d2v_plugin.load(with_head("numbers")).answer("a text")
    assert number is not None and set(number.describe()) == {"value"}


def test_the_wrong_method_names_the_right_one(with_head: Any, short_run: Any, sounds: list[Path]) -> None:
    with pytest.raises(TypeError, match="cannot classify; its method is `transcribe`"):
        d2v_plugin.load(with_head("transcripts")).classify(sounds)
    with pytest.raises(TypeError, match="cannot classify; its method is `answer`"):
        d2v_plugin.load(with_head("numbers")).classify("a text")
    with pytest.raises(TypeError, match="has no head here, so it predicts nothing; `embed` gives its features"):
        d2v_plugin.load(short_run("words")).transcribe(sounds)


def test_samples_are_embedded_by_any_model(with_head: Any, short_run: Any, sounds: list[Path]) -> None:
    tuned, pretrained = d2v_plugin.load(with_head("transcripts")), d2v_plugin.load(short_run("words"))
    for model in (tuned, pretrained):
        x = model.embed(sounds, layer=1, pooling="statistics")
        assert isinstance(x, torch.Tensor) and x.shape == (4, 192)
        assert x[1].isnan().all() and not x[[0, 2, 3]].isnan().any()
        features = model.extract_features(d2v_plugin.read_audio(sounds[3]))
        torch.testing.assert_close(x[3, :96], features.layers[1][0].mean(dim=0), rtol=1e-4, atol=1e-5)
        frames = model.embed(sounds, pooling="none")
        assert [len(rows) for rows in frames] == [49, 0, 79, 94]
        torch.testing.assert_close(frames[3], features.x[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="between -4 and 3"):
        tuned.embed(sounds, layer=4)


def test_a_model_of_several_modalities_tells_inputs_by_their_names(short_run: Any, sounds: list[Path], tmp_path: Path) -> None:
    write_png(torch.zeros(3, 32, 32, dtype=torch.uint8), str(tmp_path / "black.png"))
    model = d2v_plugin.load(short_run("multimodal"))

    shapes = [x.shape for x in (model.embed(sounds[0]), model.embed(tmp_path / "black.png"), model.embed("a text"))]

    assert shapes == [(1, 96)] * 3
    with pytest.raises(ValueError, match="modalit"):
        model(torch.randn(1, 16_000))
    assert model(torch.randn(1, 16_000), modality=Modality.AUDIO).x.shape == (1, 49, 96)


def test_a_loaded_model_is_its_network(with_head: Any, short_run: Any, sounds: list[Path], said: list[str]) -> None:
    tuned, pretrained = d2v_plugin.load(with_head("transcripts")), d2v_plugin.load(short_run("words"))

    assert all(isinstance(model, TrainedModel) and isinstance(model, Data2VecModel) for model in (tuned, pretrained))
    assert {key for key in tuned.state_dict() if key.startswith("criterion.")} == {"criterion.head.weight", "criterion.head.bias"}
    assert not any(key.startswith("criterion.") for key in pretrained.state_dict())
    assert any("criterion" in line and "`data2vec2`" in line and "left out" in line for line in said)
    assert pretrained(torch.randn(1, 16_000)).x.shape == (1, 49, 96)
    expected = [result and result.text for result in tuned.transcribe(sounds)]
    for other in (copy.deepcopy(tuned), pickle.loads(pickle.dumps(tuned)), tuned.train()):
        assert [result and result.text for result in other.transcribe(sounds)] == expected
    assert tuned.training
    half = d2v_plugin.load(with_head("transcripts"), dtype=torch.bfloat16)
    assert half.transcribe(sounds[0]) and half.embed(sounds[0]).shape == (1, 96)  # type: ignore[union-attr]


def test_the_head_can_be_left_out_and_what_is_left_out_is_named(with_head: Any, tmp_path: Path, said: list[str]) -> None:
    encoder = d2v_plugin.load(with_head("classes"), head=False)

    assert encoder.criterion is None and any(line.startswith("The head of") for line in said)
    assert encoder(torch.randn(1, 3, 32, 32)).x.shape[0] == 1

    # A head of which nobody knows what it predicts.
    shutil.copytree(with_head("classes"), tmp_path / "model")
    config = (tmp_path / "model" / "config.json").read_text()
    (tmp_path / "model" / "config.json").write_text(config.replace('"provenance"', '"forgotten"'))
    assert (tmp_path / "model" / HEAD_FILE).is_file()
    assert d2v_plugin.load(tmp_path / "model").criterion is None
    assert said[-1] == f"{tmp_path / 'model'} has a head, but does not say what it predicts: it is left out."


def test_the_head_of_an_extension_needs_its_file(with_head: Any, tmp_path: Path) -> None:
    shutil.copytree(with_head("classes"), tmp_path / "model")
    config = (tmp_path / "model" / "config.json").read_text()
    (tmp_path / "model" / "config.json").write_text(config.replace('"classification"', '"mine"'))
    extension = tmp_path / "mine.py"
    extension.write_text(
        "from d2v_plugin.plugin import Answer, ClassificationConfig, ClassificationCriterion, Criterion, register\n"
        "class Mine(ClassificationCriterion):\n"
        "    answer_kls = Answer\n"
        "    def answer(self, logits, padding_mask):\n"
        "        return [Answer(hypothesis=str(row.argmax().item()), confidence=0.5) for row in logits]\n"
        "def setup_fairseq2_extension(container):\n"
        "    register(container, Criterion, 'mine', Mine, ClassificationConfig)\n"
    )
    write_png(torch.zeros(3, 32, 32, dtype=torch.uint8), str(tmp_path / "black.png"))

    with pytest.raises(RecipeError, match=r"`mine`, which trained the model, is registered by an extension.*head=False"):
        d2v_plugin.load(tmp_path / "model")
    assert d2v_plugin.load(tmp_path / "model", head=False).criterion is None
    (answer,) = d2v_plugin.load(tmp_path / "model", extensions=[extension]).answer(tmp_path / "black.png")
    assert answer is not None and answer.describe()["confidence"] == 0.5 and answer.describe()["answer"].isdecimal()


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ([], SampleError, "There are no inputs"),
        ("nowhere.wav", RecipeError, r"nowhere\.wav does not exist"),
        ([("a", "pair")], RecipeError, "The model reads recordings; a pair of texts is no input"),
    ],
)
def test_inputs_that_are_none_are_refused(with_head: Any, inputs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        d2v_plugin.load(with_head("transcripts")).transcribe(inputs)


def test_nothing_to_read_is_an_error(with_head: Any, sounds: list[Path]) -> None:
    with pytest.raises(SampleError, match=r"None of 1 input\(s\) can be read: .*1\.wav"):
        d2v_plugin.load(with_head("transcripts")).transcribe(sounds[1])
