"""From a folder on someone's disk to batches, through the command line."""

from __future__ import annotations

import io
import json
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import soundfile
import torch
from fairseq2.gang import create_fake_gangs
from PIL import Image

from d2v_plugin.data.dataset import AudioManifest, ImageManifest, ManifestConfig, TextManifest
from d2v_plugin.data.image import ImageReadingConfig, decode
from d2v_plugin.data.preparation.audio import prepare_audio
from d2v_plugin.data.preparation.image import prepare_images
from d2v_plugin.data.text import Tokenizer, TokenStream
from d2v_plugin.tasks.audio import AudioPretrainingConfig, AudioPretrainingTask
from d2v_plugin.tasks.image import ImagePretrainingConfig, ImagePretrainingTask
from d2v_plugin.tasks.text import TextPretrainingConfig, TextPretrainingTask

TOOL = Path(__file__).parents[2] / "tools" / "make_manifest.py"
MAIN = runpy.run_path(str(TOOL))["main"]
GANGS = create_fake_gangs(torch.device("cpu"))


def run(*arguments: object, status: int = 0) -> str:
    """What the tool prints; run in this process, since starting one takes seconds."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        assert MAIN([str(argument) for argument in arguments]) == status

    return out.getvalue() if status == 0 else err.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """40 images of two classes, two of them broken, and a file of another kind."""
    folder = tmp_path / "photos"
    for row in range(40):
        path = folder / ("cats" if row % 2 else "dogs") / f"{row:02}.{'png' if row % 3 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + row, 30), (6 * row, 0, 255)).save(path)
    (folder / "cats" / "01.png").write_bytes(b"")
    (folder / "dogs" / "04.png").write_bytes((folder / "dogs" / "04.png").read_bytes()[:50])
    (folder / "notes.txt").write_text("no image")

    return folder


@pytest.mark.parametrize("options", [[], ["--shard-size", "1K"]])
def test_images_make_the_round_trip(photos: Path, tmp_path: Path, options: list[str]) -> None:
    out = tmp_path / "out"
    printed = run("image", photos, out, "--valid-percent", 25, "--labels", "folders", *options)
    dataset = ImageManifest.open(ManifestConfig(path=out))
    names = {}
    for split in dataset.splits.values():
        for row in range(len(split)):
            image = decode(split.location(row))
            label = split.text("label", row)
            number = image.shape[-1] - 20
            assert abs(int(image[0].float().mean()) - 6 * number) < 6
            assert label == ("cats" if number % 2 else "dogs")
            names[number] = split.path.stem

    assert sorted(names) == [row for row in range(40) if row not in (1, 4)]
    assert set(names.values()) == {"train", "valid"}
    report = json.loads((out / "report.json").read_text())
    assert sorted(dropped["name"] for dropped in report["dropped"]) == ["cats/01.png", "dogs/04.png", "notes.txt"]
    assert "cats/01.png: The file is empty." in printed
    task = ImagePretrainingTask(ImagePretrainingConfig(batch_size=4, image=ImageReadingConfig(size=16)))
    assert next(task.open(dataset, report=None).create_train_reader(GANGS, 1))[0].inputs.shape == (4, 3, 16, 16)


def test_shards_are_ordinary_archives_of_the_size_asked_for(photos: Path, tmp_path: Path) -> None:
    options = {"labels": None, "valid_percent": 0.0, "seed": 1, "workers": 2}
    prepare_images([photos], tmp_path / "out", shard_size=4096, **options)  # type: ignore[arg-type]
    shards = sorted((tmp_path / "out").glob("*.zip"))
    names = [name for shard in shards for name in ZipFile(shard).namelist()]

    assert len(shards) > 1
    assert all(shard.stat().st_size < 2 * 4096 + 2048 for shard in shards)
    assert len(names) == 38
    assert ZipFile(shards[0]).read(names[0]) == (photos / names[0]).read_bytes()


def test_the_same_folder_gives_the_same_files_and_new_files_do_not_move_old_ones(photos: Path, tmp_path: Path) -> None:
    out, options = tmp_path / "out", {"labels": None, "valid_percent": 25.0, "seed": 1, "shard_size": None, "workers": 2}
    prepare_images([photos], out, **options)  # type: ignore[arg-type]
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    prepare_images([photos], out, **options)  # type: ignore[arg-type]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first

    Image.new("RGB", (9, 9)).save(photos / "new.png")
    prepare_images([photos], out, **options)  # type: ignore[arg-type]
    for split in ("train.tsv", "valid.tsv"):
        lines = (out / split).read_text().splitlines()
        assert [line for line in lines if line != "new.png"] == first[split].decode().splitlines()


def test_the_report_tells_mean_and_deviation_of_the_colours(photos: Path, tmp_path: Path) -> None:
    report = prepare_images([photos / "dogs"], tmp_path / "out", labels=None, valid_percent=0, seed=1, shard_size=None, workers=1)

    assert report.facts["mean"][1:] == pytest.approx([0.0, 1.0], abs=2e-3)  # type: ignore[index]
    assert report.facts["std"][1:] == pytest.approx([0.0, 0.0], abs=2e-3)  # type: ignore[index]


def test_several_roots_make_one_manifest(photos: Path, tmp_path: Path) -> None:
    run("image", photos / "cats", photos / "dogs", tmp_path / "out", "--valid-percent", 0)
    split = ImageManifest.open(ManifestConfig(path=tmp_path / "out")).split("train")

    assert len(split) == 38
    assert split.roots == [str(photos / "cats"), str(photos / "dogs")]


def test_labels_come_from_a_file(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.tsv").write_text("cats/03.jpg\tgood cat\ndogs/02.png\tgood dog\n")
    run("image", photos, tmp_path / "out", "--valid-percent", 0, "--labels", tmp_path / "labels.tsv")
    split = ImageManifest.open(ManifestConfig(path=tmp_path / "out")).split("train")

    assert [split.text("label", row) for row in range(2)] == ["good cat", "good dog"]


def test_an_empty_split_is_refused_and_nothing_is_written(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "one").mkdir()
    (photos / "cats" / "03.jpg").rename(tmp_path / "one" / "03.jpg")
    for arguments in ([tmp_path / "nothing", "--valid-percent", 0], [tmp_path / "one", "--valid-percent", 50]):
        source, *options = arguments
        message = run("image", source, tmp_path / "out", *options, status=2)
        assert "would be empty" in message and "Traceback" not in message
    assert not (tmp_path / "out").exists()


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Ten recordings of several rates, channels and formats; one is truncated."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    random = np.random.default_rng(0)
    for row in range(10):
        rate = 8000 if row == 3 else 16_000
        sound = random.uniform(-0.5, 0.5, (16_000 + 100 * row, 1 + (row == 4)))
        soundfile.write(folder / f"{row}.{('flac', 'wav', 'ogg', 'mp3')[row % 4]}", sound, rate)
    (folder / "8.flac").write_bytes((folder / "8.flac").read_bytes()[:20_000])

    return folder


@pytest.mark.parametrize("options", [[], ["--shard-size", "50K"], ["--segment-seconds", "0.5"]])
def test_audio_makes_the_round_trip(recordings: Path, tmp_path: Path, options: list[str]) -> None:
    out = tmp_path / "out"
    printed = run("audio", recordings, out, "--valid-percent", 0, *options)
    split = AudioManifest.open(ManifestConfig(path=out)).split("train")
    config = AudioPretrainingConfig(min_sample_size=4000, batches_per_update=1)
    config.audio.resample = True
    task = AudioPretrainingTask(config).open(AudioManifest.open(ManifestConfig(path=out)), report=None)
    reader = task.create_train_reader(GANGS, 1)
    (batch,) = next(reader)

    assert len(batch.ids) == len(split) == (9 if "--segment-seconds" not in options else 28)
    # A crop of an utterance of unit variance has about that.
    torch.testing.assert_close(batch.inputs.var(-1), torch.ones(len(batch.ids)), atol=0.05, rtol=0)
    assert "8.flac" in printed
    assert "rates: {16000: 8, 8000: 1}" in printed
    assert "channels: {1: 8, 2: 1}" in printed


def test_fairseq_can_read_what_is_made_for_it(recordings: Path, tmp_path: Path) -> None:
    for path in (recordings / "3.mp3", recordings / "8.flac"):
        path.unlink()
    report = prepare_audio(
        [recordings], tmp_path / "out", labels=None, valid_percent=0, seed=1, shard_size=None, workers=1,
        sample_rate=16_000, segment_seconds=None, fairseq=True,
    )  # fmt: skip
    root, *rows = (tmp_path / "out" / "train.tsv").read_text().splitlines()

    assert report.dropped == []
    for row in rows:
        name, size = row.split("\t")
        assert abs(soundfile.info(Path(root) / name).frames - int(size)) == 0


TEXT = "\n\n".join(
    f"The {number} cats sat on {number * 7} mats.\nThen they slept for {number % 5} hours." for number in range(400)
)


@pytest.fixture
def books(tmp_path: Path) -> Path:
    (tmp_path / "cats.txt").write_text(TEXT)

    return tmp_path / "cats.txt"


def test_text_makes_the_round_trip(books: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("text", books, out, "--valid-percent", 10, "--vocabulary-size", 400, "--shard-size", "4K")
    dataset = TextManifest.open(ManifestConfig(path=out))
    tokenizer = Tokenizer(out / "sentencepiece.model")
    documents = []
    for split in dataset.splits.values():
        stream = TokenStream(split, dataset.vocabulary)
        first_row = stream.row_bounds(10_000)[1][0]
        assert len(split) == -(-len(stream) // first_row) or len(split) > 1
        ends = stream.line_ends()
        lines = [stream.read(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        assert all(line[-1] == dataset.vocabulary.end for line in lines)
        text = "\n".join(tokenizer.decode(line.tolist()) for line in lines)
        documents += text.strip("\n").split("\n\n")

    assert dataset.vocabulary.size == tokenizer.vocabulary.size == 400
    assert sorted(documents) == sorted(TEXT.split("\n\n"))
    task = TextPretrainingTask(TextPretrainingConfig(batch_size=4, tokens_per_sample=64))
    batch = next(task.open(dataset, report=None).create_train_reader(GANGS, 1))[0]
    assert batch.inputs.shape == (4, 64)
    assert (batch.inputs[:, 0] == 0).all()


def test_labelled_json_lines_make_one_row_per_document(tmp_path: Path) -> None:
    documents = [{"text": part, "label": "even" if row % 2 else "odd"} for row, part in enumerate(TEXT.split("\n\n"))]
    lines = [json.dumps(document) for document in documents]
    lines[5] = "{broken"
    lines[6] = json.dumps({"text": "  "})
    (tmp_path / "cats.jsonl").write_text("\n".join(lines))
    printed = run("text", tmp_path / "cats.jsonl", tmp_path / "out", "--valid-percent", 10, "--vocabulary-size", 400)
    dataset = TextManifest.open(ManifestConfig(path=tmp_path / "out"))
    reader = TextPretrainingTask(TextPretrainingConfig()).open(dataset, report=None).create_labelled_reader(GANGS, "train")
    tokenizer = Tokenizer(tmp_path / "out" / "sentencepiece.model")
    texts = {document["text"].replace("\n", " "): document["label"] for document in documents}
    count = 0
    for batch in (batch for batches in reader for batch in batches):
        assert batch.labels is not None
        for tokens, label in zip(batch.inputs.tolist(), batch.labels.tolist(), strict=True):
            count += 1
            text = tokenizer.decode(tokens)
            assert texts[text.replace(".Then", ". Then")] == dataset.class_names[label]

    assert count == len(dataset.split("train"))
    assert "cats.jsonl:6: no object with a `text`" in printed and "cats.jsonl:7: the text is empty" in printed


def test_a_given_tokenizer_is_renumbered_not_retrained(books: Path, tmp_path: Path) -> None:
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        input=str(books), model_prefix=str(tmp_path / "given"), vocab_size=80, unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
        control_symbols=["<extra>"], minloglevel=2,
    )  # fmt: skip
    run("text", books, tmp_path / "out", "--valid-percent", 0, "--tokenizer", tmp_path / "given.model")
    dataset = TextManifest.open(ManifestConfig(path=tmp_path / "out"))
    tokens = TokenStream(dataset.split("train"), dataset.vocabulary).read(0, 2000)

    assert dataset.vocabulary.size == 80 - 4 + 5
    assert set(tokens.tolist()) <= {2, *range(4, dataset.vocabulary.mask)}
    assert "The 0 cats sat on 0 mats." in Tokenizer(tmp_path / "out" / "sentencepiece.model").decode(tokens[:100].tolist())


def test_a_trained_tokenizer_does_not_name_the_folder_it_was_made_in(books: Path, tmp_path: Path) -> None:
    for folder in ("here", "there"):
        run("text", books, tmp_path / folder, "--valid-percent", 0, "--vocabulary-size", 400)
    here, there = ((tmp_path / folder / "sentencepiece.model").read_bytes() for folder in ("here", "there"))

    assert here == there and b"here" not in here


def test_a_vocabulary_larger_than_the_text_allows_is_refused(books: Path, tmp_path: Path) -> None:
    message = run("text", books, tmp_path / "out", "--valid-percent", 0, "--vocabulary-size", 30_000, status=2)

    assert "try a smaller one" in message


@pytest.mark.parametrize(
    ("name", "expected"),
    [("digits", ["1,200 rows (ImageManifest)", "labels: 10 different", "sizes of 1,000 images"]),
     ("words", ["380 rows (AudioManifest)", "hours", "seconds: ", "log-mel spectrograms of 100 recordings: mean "]),
     ("books", ["1 rows (TextManifest)", "tokens of a vocabulary of 2,000"])],
)  # fmt: skip
def test_inspecting_shows_totals_a_histogram_and_rows(name: str, expected: list[str]) -> None:
    manifest = TOOL.parents[1] / "manifests" / name / "train.tsv"
    printed = run("inspect", manifest, *(["--log-mel"] if name == "words" else []))

    for part in expected:
        assert part in printed
    assert "█" in printed and "rows:" in printed


def test_a_wrong_manifest_is_inspected_with_all_its_errors(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text(".\na.png\nb.png\n")
    message = run("inspect", tmp_path / "train.tsv", status=2)

    assert "train.tsv:2:" in message and "train.tsv:3:" in message
    digits = TOOL.parents[1] / "manifests" / "digits" / "valid.tsv"
    assert "digits/valid.tsv lists no recordings" in run("inspect", digits, "--log-mel", status=2)


def test_the_tool_is_a_program() -> None:
    manifest = TOOL.parents[1] / "manifests" / "words" / "valid.tsv"
    command = [sys.executable, str(TOOL), "inspect", str(manifest)]

    assert "120 rows" in subprocess.run(command, check=True, capture_output=True, text=True).stdout
