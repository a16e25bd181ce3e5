"""tools/make_manifest.py: nothing lost in silence, nothing mixed by a kill, and a line for every mistake."""

from __future__ import annotations

import gzip
import json
import os
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from d2v_plugin.data.dataset import AudioManifest, ImageManifest, ManifestConfig, ManifestDataset, TextManifest
from d2v_plugin.data.files import Location
from d2v_plugin.data.preparation import common, files, image, text
from d2v_plugin.data.problems import ManifestError
from d2v_plugin.data.text import Tokenizer, TokenStream

MAIN = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "make_manifest.py"))["main"]


class Killed(BaseException):
    """As by SIGKILL: no handler of errors sees it."""


def run(*words: object) -> int:
    return MAIN([str(word) for word in words])  # type: ignore[no-any-return]


def report_of(out: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return found


def write_sound(path: Path, value: float, size: int = 800, rate: int = 16_000) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(size, value), rate, subtype="FLOAT")


def write_picture(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 9), (value, value, value)).save(path)


def write_text(path: Path, word: str, number: int = 40) -> None:
    path.write_text("\n\n".join(f"{word} {row} beta gamma" for row in range(number)) + "\n")


def killed_at(monkeypatch: pytest.MonkeyPatch, module: object, name: str, number: int = 1) -> None:
    """The process ends when a function is called for the ``number``-th time."""
    original: Callable[..., object] = getattr(module, name)
    calls = iter(range(1, 1000))

    def call(*words: object, **options: object) -> object:
        if next(calls) == number:
            raise Killed
        return original(*words, **options)

    monkeypatch.setattr(module, name, call)


def read_values(dataset: ManifestDataset) -> dict[str, float]:
    """What each transcript's recording holds."""
    split = dataset.split("train")
    found = {}
    for row in range(len(split)):
        location = split.location(row)
        with Path(location.path).open("rb") as file:
            file.seek(location.offset)
            wave = file.read(location.size)
        found[str(split.text("label", row))] = float(np.frombuffer(wave[-4:], "<f4")[0])
    return found


@pytest.mark.parametrize("where", ["_write_split", "replace_manifests", "remove_other_shards"])
def test_a_kill_while_repacking_never_gives_a_transcript_to_another_recording(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(first: int) -> int:
        for row in range(first, 9):
            write_sound(tmp_path / "in" / f"{row}.wav", row / 8)
        (tmp_path / "t.tsv").write_text("".join(f"{row}.wav\t{row / 8}\n" for row in range(first, 9)))
        words = ("audio", tmp_path / "in", tmp_path / "out", "--transcripts", tmp_path / "t.tsv", "--valid-percent", 0)
        return run(*words, "--shard-size", "8K")

    assert prepare(1) == 0
    with monkeypatch.context() as patched:
        killed_at(patched, files, where)
        with pytest.raises(Killed):
            prepare(0)
    config = ManifestConfig(path=tmp_path / "out")
    if where == "_write_split":
        with pytest.raises(ManifestError, match=r"unfinished\.txt is there: .* run it again"):
            AudioManifest.open(config)
        assert run("inspect", tmp_path / "out" / "train.tsv") == 2
    else:
        values = read_values(AudioManifest.open(config))
        assert values and all(float(label) == value for label, value in values.items())

    assert prepare(0) == 0
    values = read_values(AudioManifest.open(config))
    assert len(values) == 9 and all(float(label) == value for label, value in values.items())
    assert {path.name for path in (tmp_path / "out").glob("*.zip")} == {
        line.partition(":")[0] for line in (tmp_path / "out" / "train.tsv").read_text().splitlines() if ".zip" in line
    }


@pytest.mark.parametrize(
    ("module", "where", "number"),
    [
        (text, "write_tokens", 2),
        (text, "replace_manifests", 1),
        (text.TokenWriter, "write_manifest", 1),
        (text.TokenWriter, "write_manifest", 2),
    ],
)
def test_a_kill_while_tokenizing_never_mixes_tokenizer_and_shards(
    module: object, where: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def read() -> str:
        dataset = TextManifest.open(ManifestConfig(path=out))
        stream = TokenStream(dataset.split("train"), dataset.vocabulary)
        stream.line_ends()
        return Tokenizer(out / "sentencepiece.model").decode(stream.read(0, len(stream)).tolist())

    def prepare(word: str, size: int) -> int:
        write_text(tmp_path / "in.txt", word)
        return run("text", tmp_path / "in.txt", out, "--vocabulary-size", size, "--valid-percent", 20)

    assert prepare("alpha", 285) == 0
    before = read()
    assert before.count("alpha") > 20
    with monkeypatch.context() as patched:
        killed_at(patched, module, where, number)
        with pytest.raises(Killed):
            prepare("omega", 290)
    if where == "write_manifest":
        with pytest.raises(ManifestError, match="run it again"):
            read()
    else:
        assert read() == before
    assert prepare("omega", 290) == 0
    assert read() == before.replace("alpha", "omega")
    assert len(list(out.glob("*.bin"))) == len(list(out.glob("*.idx"))) == 2


def test_manifests_of_another_tokenizer_do_not_open(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_text(tmp_path / "in.txt", "alpha")
    run("text", tmp_path / "in.txt", out, "--vocabulary-size", 285, "--valid-percent", 20)
    # The same size, so that no number tells; and valid.tsv stays.
    write_text(tmp_path / "in.txt", "omega")
    run("text", tmp_path / "in.txt", out, "--vocabulary-size", 285, "--valid-percent", 0)

    with pytest.raises(ManifestError, match=r"valid\.tsv was written with another vocabulary"):
        _ = TextManifest.open(ManifestConfig(path=out)).vocabulary
    assert run("inspect", out / "valid.tsv") == 2 and run("inspect", out / "train.tsv") == 0


def test_one_label_that_is_missing_costs_one_document(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"alpha beta {row}", "label": None if row == 5 else f"l{row % 2}"}) for row in range(40)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    assert run("text", tmp_path / "in.jsonl", tmp_path / "out", "--vocabulary-size", 285, "--valid-percent", 0) == 0
    split = TextManifest.open(ManifestConfig(path=tmp_path / "out")).split("train")

    assert len(split) == 39 and split.distinct("label") == ["l0", "l1"]
    assert report_of(tmp_path / "out")["dropped"] == [
        {"name": "in.jsonl:6", "reason": "it has no label, but other lines of the file have"}
    ]


def test_labels_beside_files_that_have_none_are_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": f"alpha {row}", "label": "x"}) for row in range(20)))
    write_text(tmp_path / "b.txt", "alpha")
    sources = (tmp_path / "a.jsonl", tmp_path / "b.txt")
    assert run("text", *sources, tmp_path / "out", "--vocabulary-size", 285, "--valid-percent", 0) == 0

    facts = report_of(tmp_path / "out")["facts"]
    assert isinstance(facts, dict) and facts["labels left out, since whole files have none"] == 20


def test_recordings_without_a_frame_are_dropped_and_counted_by_reason(tmp_path: Path) -> None:
    for name, size, rate in (("a", 399, 16_000), ("b", 400, 16_000), ("c", 199, 8000), ("d", 200, 8000), ("e", 0, 16_000)):
        write_sound(tmp_path / "in" / f"{name}.wav", 0.5, size, rate)
    (tmp_path / "in" / "f.wav").symlink_to(tmp_path / "in" / "b.wav")
    assert run("audio", tmp_path / "in", tmp_path / "out", "--valid-percent", 0) == 0
    rows = (tmp_path / "out" / "train.tsv").read_text().splitlines()

    assert [row.split("\t")[0] for row in rows[2:]] == ["b.wav", "d.wav"]
    assert report_of(tmp_path / "out")["reasons"] == {
        "it was found by another name": 1,
        "The recording is too short": 2,
        "The recording has no samples.": 1,
    }
    assert run("audio", tmp_path / "in", tmp_path / "out", "--valid-percent", 0, "--min-samples", 401) == 2


def test_transcripts_without_recordings_and_with_signs_between_words_are_counted(tmp_path: Path) -> None:
    for row in range(4):
        write_sound(tmp_path / "in" / f"{row}.wav", 0.5)
    lines = "".join(f"{row}.wav\t{'a|b' if row == 1 else f'word {row}'}\r\n" for row in range(6) if row != 2)
    (tmp_path / "t.tsv").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert run("audio", tmp_path / "in", tmp_path / "out", "--transcripts", tmp_path / "t.tsv", "--valid-percent", 0) == 0

    assert report_of(tmp_path / "out")["reasons"] == {
        "there is a transcript, but no such file below the folders given": 2,
        "it has no transcript": 1,
        "the transcript has `|`, which stands between words where text is spelled; write it as a word": 1,
    }
    assert (tmp_path / "out" / "train.tsv").read_text().splitlines()[-1].split("\t")[2] == "word 3"


def test_equal_contents_in_both_splits_are_found_when_asked_for(tmp_path: Path) -> None:
    for row in range(20):
        write_picture(tmp_path / "in" / f"{row:02}.png", row // 2)
    words = ("image", tmp_path / "in", tmp_path / "out", "--valid-percent", 50)
    assert run(*words) == 0 and "duplicates" not in report_of(tmp_path / "out")
    assert run(*words, "--check-duplicates") == 0
    found = report_of(tmp_path / "out")["duplicates"]
    dataset = ImageManifest.open(ManifestConfig(path=tmp_path / "out"))
    names = {split: {Path(part.location(row).path).stem for row in range(len(part))} for split, part in dataset.splits.items()}

    expected = [name for name in names["valid"] if {f"{int(name) ^ 1:02}"} & names["train"]]
    assert isinstance(found, list) and len(found) == len(expected) > 0
    assert all(int(pair["train"][:2]) == int(pair["valid"][:2]) ^ 1 for pair in found)


def test_a_decoder_may_fail_in_any_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for row in range(3):
        write_picture(tmp_path / "in" / f"{row}.png", row)
    decode = image.decode_picture

    def fail(location: Location, num_channels: int) -> object:
        if location.path.endswith("1.png"):
            raise SyntaxError("broken PNG file")
        return decode(location, num_channels)

    monkeypatch.setattr(image, "decode_picture", fail)
    assert run("image", tmp_path / "in", tmp_path / "out", "--valid-percent", 0) == 0
    assert report_of(tmp_path / "out")["reasons"] == {"it cannot be decoded": 1}


def test_a_manifest_that_an_earlier_run_left_is_named(tmp_path: Path) -> None:
    for row in range(20):
        write_picture(tmp_path / "in" / f"{row}.png", row)
    words = ("image", tmp_path / "in", tmp_path / "out", "--valid-percent")
    assert run(*words, 50) == 0 and run(*words, 0) == 0

    facts = report_of(tmp_path / "out")["facts"]
    assert isinstance(facts, dict) and facts["manifests of an earlier run, left as they are"] == ["valid.tsv"]


def test_equal_documents_in_both_splits_are_found_when_asked_for(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("alpha beta gamma\n\n" * 20)
    words = ("text", tmp_path / "in.txt", tmp_path / "out", "--vocabulary-size", 275, "--valid-percent", 50)
    assert run(*words, "--check-duplicates") == 0
    report = report_of(tmp_path / "out")

    assert isinstance(report["duplicates"], list) and isinstance(report["splits"], dict)
    assert len(report["duplicates"]) == report["splits"]["valid"]["documents"]


def test_names_that_are_no_utf8_are_packed_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_picture(tmp_path / "in" / "0.png", 1)
    name = os.fsdecode(b"b\xff.png")
    write_picture(tmp_path / "in" / name, 2)
    (tmp_path / "in" / os.fsdecode(b"c\xff.png")).write_bytes(b"no picture")
    assert run("image", tmp_path / "in", tmp_path / "out", "--valid-percent", 0, "--shard-size", "1M") == 0

    assert "c\\xff.png" in capsys.readouterr().out
    assert len(ImageManifest.open(ManifestConfig(path=tmp_path / "out")).split("train")) == 2
    assert report_of(tmp_path / "out")["num_dropped"] == 1


MISTAKES: dict[str, tuple[list[str], str]] = {
    "OUT is a file": (["audio", "a", "file"], "is no folder"),
    "OUT is below a file": (["audio", "a", "file/out"], "is no folder"),
    "no worker": (["audio", "a", "o", "--workers", "-1"], "`--workers` must be from 1"),
    "a share of NaN": (["audio", "a", "o", "--valid-percent", "nan"], "`--valid-percent` must be from 0 to 100"),
    "segments of nothing": (["audio", "a", "o", "--segment-seconds", "0"], "`--segment-seconds` must be"),
    "no tokenizer": (["text", "t.txt", "o", "--tokenizer", "nothing.model"], "nothing.model cannot be read: No such file"),
    "a tokenizer that is none": (["text", "t.txt", "o", "--tokenizer", "file"], "file is no SentencePiece model"),
    "a tokenizer that is empty": (["text", "t.txt", "o", "--tokenizer", "empty"], "empty is no SentencePiece model"),
    "a tokenizer that is a folder": (["text", "t.txt", "o", "--tokenizer", "a"], "a is no file, but a folder"),
    "labels that are a pipe": (["audio", "a", "o", "--labels", "pipe"], "pipe is no file, but a pipe"),
    "labels in Latin-1": (["audio", "a", "o", "--labels", "latin.tsv"], "latin.tsv:2: byte 4 is no UTF-8"),
    "two labels": (["audio", "a", "o", "--labels", "twice.tsv"], "twice.tsv:3: `0.wav` has another label on line 1"),
    "a folder with a tab": (["audio", "a\tb", "o"], "a tab or a line break"),
    "a pipe of text": (["text", "pipe", "o"], "pipe is neither a file nor a folder"),
    "a manifest that is a pipe": (["inspect", "pipe"], "pipe is no manifest"),
    "pieces without transcripts": (["pieces", "m"], "has no transcripts to learn from"),
    "shards of no size": (["audio", "a", "o", "--shard-size", ""], "`` is no size"),
    "shards of a size beyond all": (["audio", "a", "o", "--shard-size", "9" * 5000], f"`{'9' * 30}` is no size"),
    "no group": (["audio", "a", "o", "--split-by", ""], "`--split-by` must be"),
    "a file as source": (["audio", "file", "o"], "file is no folder"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_with_a_line_that_tells_the_way_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_sound(tmp_path / "a" / "0.wav", 0.5)
    (tmp_path / "a\tb").mkdir()
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "train.tsv").write_text("../a\n0.wav\t800\n")
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").touch()
    write_text(tmp_path / "t.txt", "alpha")
    (tmp_path / "latin.tsv").write_bytes("0.wav\tcafe\n1.wav\tcafé\n".encode("latin-1"))
    (tmp_path / "twice.tsv").write_text("0.wav\ta\n0.wav\ta\n0.wav\tb\n")
    os.mkfifo(tmp_path / "pipe")
    words, message = MISTAKES[name]

    assert run(*words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_the_tokenizer_of_the_folder_itself_may_be_given(tmp_path: Path) -> None:
    write_text(tmp_path / "in.txt", "alpha")
    words = ("text", tmp_path / "in.txt", tmp_path / "out", "--valid-percent", 20)
    assert run(*words, "--vocabulary-size", 285) == 0
    first = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert run(*words, "--tokenizer", tmp_path / "out" / "sentencepiece.model") == 0

    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == first


def test_a_truncated_archive_among_texts_is_reported(tmp_path: Path) -> None:
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"alpha beta\n\n" * 500)[:-6])
    write_text(tmp_path / "in.txt", "alpha")
    sources = (tmp_path / "in.txt", tmp_path / "cut.txt.gz")
    assert run("text", *sources, tmp_path / "out", "--vocabulary-size", 285, "--valid-percent", 10) == 0
    assert report_of(tmp_path / "out")["reasons"] == {"the rest of the file": 1}


def test_an_error_that_nobody_has_foreseen_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "out/train.tsv")

    write_picture(tmp_path / "in" / "0.png", 1)
    monkeypatch.setattr(common, "write_atomically", fail)
    assert run("image", tmp_path / "in", tmp_path / "out", "--valid-percent", 0) == 2
    assert capsys.readouterr().err == "fairseq2: error: out/train.tsv: No space left on device\n"
