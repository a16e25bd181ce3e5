"""`fairseq2 recipe predict` answers for files, folders and manifests what `evaluate` scores, whatever happens on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from d2v_plugin.scoring.scores import accuracy, mean_average_precision, pearson, word_error_rate
from tests.reliability.processes import Ranks

ROOT = Path(__file__).parents[2]
WORDS = ROOT / "manifests" / "words"


def predict(command: Any, model: Path, out: Path, inputs: object, *settings: str) -> Any:
    words = [f"checkpoint.path={model}", f"inputs={inputs}", "common.torch.num_threads=1", *settings]

    return command("recipe", "predict", out, "--config", *words)


def read_lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def read_table(out: Path) -> list[dict[str, str]]:
    header, *rows = [line.split("\t") for line in (out / "predictions.tsv").read_text().splitlines()]

    return [dict(zip(header, row, strict=True)) for row in rows]


def evaluate(command: Any, model: Path, out: Path, *settings: str) -> dict[str, float]:
    outcome = command("recipe", "evaluate", out, "--config", f"checkpoint.path={model}", "common.torch.num_threads=1", *settings)
    assert outcome.status == 0, outcome.err

    return json.loads((out / "scores.json").read_text())["scores"]["valid"]  # type: ignore[no-any-return]


def write_sound(path: Path, seconds: float = 1.0, *, rate: int = 16_000, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(seed).normal(size=int(seconds * rate)), rate)

    return path


def test_transcripts_of_a_manifest_have_the_word_error_rate_of_evaluate(command: Any, with_head: Any, tmp_path: Path) -> None:
    outcome = predict(command, with_head("transcripts"), tmp_path / "out", WORDS / "valid.tsv", "prediction.part_size=50")

    assert outcome.status == 0, outcome.err
    assert "120 of 120 samples." in outcome.out and str(tmp_path / "out" / "predictions.jsonl") in outcome.out
    labels = [line.split("\t")[2] for line in (WORDS / "valid.tsv").read_text().splitlines()[2:]]
    lines, table = read_lines(tmp_path / "out"), read_table(tmp_path / "out")
    texts = [line["text"] for line in lines]
    scores = evaluate(command, with_head("transcripts"), tmp_path / "scores")
    assert word_error_rate(texts, labels) == pytest.approx(scores["wer"], abs=1e-6) and len(set(texts)) > 50
    assert [line["row"] for line in lines] == list(range(120)) and [row["prediction"] for row in table] == texts
    assert lines[0]["path"] == f"{WORDS}/words.zip" and lines[0]["size"] > 1000 and table[0]["offset"] == str(lines[0]["offset"])

    # The file that evaluation writes says the same.
    rows = [line.split("\t") for line in (tmp_path / "scores/predictions/valid.tsv").read_text().splitlines()[1:]]
    assert [row[1] for row in rows] == texts
    assert [float(row[3]) for row in rows] == pytest.approx([line["confidence"] for line in lines], abs=1e-4)
    assert rows[0][4] == f"{WORDS}/words.zip:{lines[0]['offset']}:{lines[0]['size']}"
    for line in lines:
        assert " ".join(word["word"] for word in line["words"]) == line["text"]
        times = [time for word in line["words"] for time in (word["start"], word["end"])]
        assert times == sorted(times) and all(0.0 < word["confidence"] <= 1.0 for word in line["words"])


def test_classes_have_the_accuracy_of_evaluate(command: Any, with_head: Any, tmp_path: Path) -> None:
    manifest = ROOT / "manifests" / "digits" / "probe.tsv"
    shutil.copy(manifest, tmp_path / "valid.tsv")
    (tmp_path / "digits.zip").symlink_to(manifest.with_name("digits.zip"))

    assert predict(command, with_head("classes"), tmp_path / "out", manifest, "prediction.top_k=10").status == 0

    labels = [line.split("\t")[1] for line in manifest.read_text().splitlines()[2:]]
    lines = read_lines(tmp_path / "out")
    scores = evaluate(command, with_head("classes"), tmp_path / "scores", f"dataset.config_overrides.path={tmp_path}")
    assert accuracy([line["label"] for line in lines], labels) == pytest.approx(scores["accuracy"], abs=1e-6)
    assert len({line["label"] for line in lines}) > 1
    for line in lines:
        shares = [found["probability"] for found in line["classes"]]
        assert sum(shares) == pytest.approx(1.0, abs=1e-5) and shares == sorted(shares, reverse=True)
        assert line["classes"][0] == {"label": line["label"], "probability": line["confidence"]}


def test_all_tags_have_the_precision_of_evaluate(command: Any, with_head: Any, tmp_path: Path) -> None:
    rows = [line.split("\t") for line in (WORDS / "valid.tsv").read_text().splitlines()[2:]]
    tags = [[name in row[2] for name in "eox"] for row in rows]
    lines = [f"{row[0]}\t{row[1]}\t{';'.join(name for name in 'eox' if name in row[2])}" for row in rows]
    (tmp_path / "valid.tsv").write_text("\n".join([str(WORDS), "#columns\tpath\tsize\ttags", *lines]) + "\n")

    assert predict(command, with_head("tags"), tmp_path / "out", tmp_path / "valid.tsv", "prediction.threshold=0").status == 0

    found = [{tag["tag"]: tag["probability"] for tag in line["tags"]} for line in read_lines(tmp_path / "out")]
    scores = evaluate(command, with_head("tags"), tmp_path / "scores", f"dataset.config_overrides.path={tmp_path}")
    own = mean_average_precision([[line[name] for name in "eox"] for line in found], tags)
    assert own == pytest.approx(scores["mean_average_precision"], abs=1e-6)
    assert all(list(line.values()) == sorted(line.values(), reverse=True) for line in found)


def test_pairs_and_numbers_have_the_scores_of_evaluate(command: Any, with_head: Any, tmp_path: Path) -> None:
    table = ROOT / "manifests" / "book_pairs" / "valid.tsv"
    assert predict(command, with_head("pairs"), tmp_path / "pairs", table).status == 0
    labels = [line.split("\t")[2] for line in table.read_text().splitlines()[1:]]
    own = accuracy([line["label"] for line in read_lines(tmp_path / "pairs")], labels)
    assert own == pytest.approx(evaluate(command, with_head("pairs"), tmp_path / "scores")["accuracy"], abs=1e-6)

    numbers = [i * i % 7 for i in range(30)]
    rows = [f"{number}\tword {'and ' * number}{i}" for i, number in enumerate(numbers)]
    (tmp_path / "valid.tsv").write_text("score\tsentence\n" + "\n".join(rows) + "\n")
    assert predict(command, with_head("numbers"), tmp_path / "numbers", tmp_path / "valid.tsv").status == 0
    values = [line["value"] for line in read_lines(tmp_path / "numbers")]
    scores = evaluate(command, with_head("numbers"), tmp_path / "more", f"dataset.config_overrides.path={tmp_path}")
    assert pearson(values, numbers) == pytest.approx(scores["pearson"], abs=1e-5)


def test_files_and_folders_in_any_order(command: Any, with_head: Any, tmp_path: Path) -> None:
    one = write_sound(tmp_path / "one.wav")
    for number, name in enumerate(("b.flac", "deep/a.wav", "c.wav")):
        write_sound(tmp_path / "folder" / name, 0.5 + number, rate=44_100, seed=number)
    (tmp_path / "folder" / "notes.txt").write_text("no sound")

    outcome = predict(command, with_head("transcripts"), tmp_path / "out", f"[{tmp_path}/folder, {one}, {one}]")

    assert outcome.status == 0, outcome.err
    lines = read_lines(tmp_path / "out")
    names = [f"{tmp_path}/folder/{name}" for name in ("b.flac", "c.wav", "deep/a.wav")]
    assert [line["path"] for line in lines] == [*names, str(one), str(one)]
    assert {key: value for key, value in lines[3].items() if key != "row"} == {k: v for k, v in lines[4].items() if k != "row"}
    assert not (tmp_path / "out" / "bad_samples.tsv").exists()


def test_bad_files_are_named_and_the_others_go_on(command: Any, with_head: Any, tmp_path: Path) -> None:
    good = write_sound(tmp_path / "good.wav")
    write_sound(tmp_path / "short.wav", 0.01)
    (tmp_path / "damaged.wav").write_bytes(good.read_bytes()[:100])
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "folder").mkdir()
    manifest = tmp_path / "m.tsv"
    manifest.write_text(f"{tmp_path}\ngood.wav\t16000\nmissing.wav\t16000\n")
    names = ["short.wav", "damaged.wav", "picture.png", "folder", "empty.wav", "good.wav", "m.tsv"]

    outcome = predict(command, with_head("transcripts"), tmp_path / "out", f"[{', '.join(str(tmp_path / n) for n in names)}]")

    assert outcome.status == 0, outcome.err
    assert "2 of 8 samples." in outcome.out and "bad_samples.tsv (6, such as" in outcome.out
    assert [(line["row"], Path(line["path"]).name) for line in read_lines(tmp_path / "out")] == [(5, "good.wav"), (6, "good.wav")]
    bad = [line.split("\t") for line in (tmp_path / "out" / "bad_samples.tsv").read_text().splitlines()]
    assert [(row, Path(path).name) for row, path, _ in bad] == [
        *(("0", "short.wav"), ("1", "damaged.wav"), ("2", "picture.png"), ("3", "folder"), ("4", "empty.wav")),
        ("7", "missing.wav"),
    ]
    assert "too short" in bad[0][2] and "reads recordings" in bad[2][2] and "holds no recordings" in bad[3][2]
    assert json.loads((tmp_path / "out" / "index.json").read_text())["num_bad"] == 6


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("{folder}/nowhere.wav", "nowhere.wav does not exist"),
        ("{folder}/damaged.wav", "None of 1 input(s) can be read: {folder}/damaged.wav: "),
        ("{folder}/picture.png", "The model reads recordings, but this is a file `.png`"),
        ("{folder}/empty", "{folder}/empty: The folder holds no recordings"),
        ("{root}/manifests/words", "To read a manifest, name it: probe.tsv, train.tsv, valid.tsv"),
        ("{folder}/pipe.wav", "pipe.wav: It is a pipe, socket or device, which is not read."),
        ("[]", "`inputs` must name a file, a folder or a manifest"),
        ("{root}/manifests/digits/valid.tsv", "None of 597 input(s) can be read: {root}/manifests/digits/digits.zip:"),
    ],
)
def test_mistakes_are_told_in_one_line(command: Any, with_head: Any, tmp_path: Path, inputs: str, message: str) -> None:
    (tmp_path / "damaged.wav").write_text("no sound")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.wav")
    places = {"folder": tmp_path, "root": ROOT}

    outcome = predict(command, with_head("transcripts"), tmp_path / "out", inputs.format(**places))

    assert outcome.status == 2 and "Traceback" not in outcome.err
    assert message.format(**places) in " ".join(line.strip() for line in outcome.err.splitlines()[-2:])


def test_a_model_without_a_head_says_what_else_it_can_do(command: Any, short_run: Any, tmp_path: Path) -> None:
    outcome = predict(command, short_run("words"), tmp_path / "out", WORDS / "valid.tsv")

    assert outcome.status == 2 and "`fairseq2 recipe extract` writes its features" in outcome.err.splitlines()[-1]


def test_a_missing_vocabulary_is_named_and_can_be_given(command: Any, with_head: Any, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(with_head("pairs"), model)
    config = (model / "config.json").read_text().replace(f"{ROOT}/manifests/books", "/nowhere/books")
    (model / "config.json").write_text(config)
    (tmp_path / "pairs.jsonl").write_text('{"first": "a word", "second": "its meaning"}\n')

    outcome = predict(command, model, tmp_path / "out", tmp_path / "pairs.jsonl")
    assert outcome.status == 2 and "There is no vocabulary in" in outcome.err.splitlines()[-1]

    named = f"dataset.config_overrides.vocabulary={ROOT}/manifests/books"
    assert predict(command, model, tmp_path / "out", tmp_path / "pairs.jsonl", named).status == 0
    shutil.copy(ROOT / "manifests" / "books" / "sentencepiece.model", model)
    assert predict(command, model, tmp_path / "own", tmp_path / "pairs.jsonl").status == 0
    assert read_lines(tmp_path / "own") == read_lines(tmp_path / "out")


def test_lines_of_text_come_in_three_formats(command: Any, with_head: Any, tmp_path: Path) -> None:
    pairs = [("a word", "its meaning"), ("an apple is a fruit", "round"), ("", "no word"), ("x " * 200, "long")]
    (tmp_path / "named.tsv").write_text("id\tsecond\tfirst\n" + "".join(f"7\t{b}\t{a}\n" for a, b in pairs))
    (tmp_path / "bare.tsv").write_text("".join(f"{a}\t{b}\r\n" for a, b in pairs) + "three\tmore\tcolumns\n")
    objects = [json.dumps({"first": a, "second": b}) for a, b in pairs]
    (tmp_path / "objects.jsonl").write_text("\n".join([*objects, "{", '{"first": 1}']))
    (tmp_path / "empty.txt").write_text("")
    files = ["named.tsv", "bare.tsv", "objects.jsonl", "empty.txt"]

    outcome = predict(command, with_head("pairs"), tmp_path / "out", f"[{', '.join(str(tmp_path / name) for name in files)}]")

    assert outcome.status == 0, outcome.err
    assert "were cut, such as" in " ".join(outcome.err.split())
    found: dict[str, list[tuple[int, float]]] = {}
    for line in read_lines(tmp_path / "out"):
        found.setdefault(Path(line["path"]).name, []).append((line["line"], round(line["confidence"], 4)))
    first, second, long = (confidence for _, confidence in found["bare.tsv"])
    assert found == {
        "named.tsv": [(2, first), (3, second), (5, long)],
        "bare.tsv": [(1, first), (2, second), (4, long)],
        "objects.jsonl": [(1, first), (2, second), (4, long)],
    }
    bad = [line.split("\t")[1:] for line in (tmp_path / "out" / "bad_samples.tsv").read_text().splitlines()]
    assert [Path(place).name for place, _ in bad] == [
        *("named.tsv:4", "bare.tsv:3", "bare.tsv:5", "objects.jsonl:3", "objects.jsonl:5", "objects.jsonl:6", "empty.txt")
    ]
    assert "`first` is empty" in bad[0][1] and "3 column(s), expected 2" in bad[2][1] and "no JSON" in bad[4][1]


def test_segments_say_where_they_begin(command: Any, with_head: Any, tmp_path: Path) -> None:
    write_sound(tmp_path / "talk.wav", 3.0)
    (tmp_path / "m.tsv").write_text(f"{tmp_path}\n#columns\tpath\tsize\tstart\ntalk.wav\t16000\t0\ntalk.wav\t16000\t24000\n")

    assert predict(command, with_head("transcripts"), tmp_path / "out", tmp_path / "m.tsv").status == 0

    assert [line["start"] for line in read_lines(tmp_path / "out")] == [0.0, 1.5]
    assert [row["start"] for row in read_table(tmp_path / "out")] == ["0.0", "1.5"]


def test_long_recordings_are_computed_in_chunks(command: Any, with_head: Any, tmp_path: Path) -> None:
    """What fits into a chunk is exact; in a longer one words are where they were, but for those that see the cut."""
    write_sound(tmp_path / "short.wav", 1.0)
    write_sound(tmp_path / "long.wav", 12.0, seed=1)
    for name, chunk in (("whole", "null"), ("chunks", "4")):
        settings = [f"prediction.chunk_seconds={chunk}", f"inputs=[{tmp_path}/short.wav, {tmp_path}/long.wav]"]
        assert predict(command, with_head("transcripts"), tmp_path / name, "x", *settings).status == 0
    whole, chunks = read_lines(tmp_path / "whole"), read_lines(tmp_path / "chunks")

    assert chunks[0]["text"] == whole[0]["text"] and chunks[0]["confidence"] == pytest.approx(whole[0]["confidence"], abs=1e-6)
    last = max(word["end"] for word in chunks[1]["words"])
    assert 11.5 < last <= 12.0 and chunks[1]["text"] != ""


KILLER = """
import os, signal
import d2v_plugin.extraction.shards as shards

put_in_place, number = shards.put_in_place, [0]

def setup_fairseq2_extension(container):
    def die_before_the_second_part(aside, target):
        number[0] += 1
        if os.environ["RANK"] == "1" and number[0] == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        put_in_place(aside, target)

    shards.put_in_place = die_before_the_second_part
"""


def test_two_processes_that_were_killed_and_then_one_write_what_one_writes(command: Any, with_head: Any, tmp_path: Path) -> None:
    model, out, settings = with_head("transcripts"), tmp_path / "out", ["prediction.part_size=20"]
    (tmp_path / "killer.py").write_text(KILLER)
    words = ["recipe", "predict", "--extension", tmp_path / "killer.py", out, "--config", f"checkpoint.path={model}"]
    words += [f"inputs={WORDS}/valid.tsv", "common.torch.num_threads=1", *settings]

    assert Ranks(words, tmp_path / "printed", size=2).wait()[1] == -signal.SIGKILL
    assert not (out / "predictions.jsonl").exists()
    written = {path.name: path.stat().st_mtime_ns for path in (out / "parts").glob("part-*")}
    assert "part-00001.jsonl" in written and "part-00003.jsonl" not in written

    # One part has been damaged since: it is noticed, and only what is missing is computed.
    damaged = out / "parts" / "part-00001.jsonl"
    damaged.write_text(damaged.read_text().replace('"row": 21', '"row": 22'))
    outcome = predict(command, model, out, WORDS / "valid.tsv", *settings)
    assert outcome.status == 0 and "is damaged and is computed again" in " ".join(outcome.err.split())
    assert predict(command, model, tmp_path / "whole", WORDS / "valid.tsv", *settings).status == 0

    kept = {name for name, time in written.items() if (out / "parts" / name).stat().st_mtime_ns == time}
    assert kept == written.keys() - {"part-00001.jsonl"}
    for name in ("predictions.jsonl", "predictions.tsv", "index.json"):
        assert (out / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_predictions_of_other_inputs_or_settings_are_not_mixed(command: Any, with_head: Any, tmp_path: Path) -> None:
    sound = write_sound(tmp_path / "a.wav")
    assert predict(command, with_head("transcripts"), tmp_path / "out", sound).status == 0
    assert predict(command, with_head("transcripts"), tmp_path / "out", sound).status == 0

    write_sound(sound, 2.0)
    changed = predict(command, with_head("transcripts"), tmp_path / "out", sound)

    assert changed.status == 2 and "holds other predictions: `inputs_hash` was" in changed.err.splitlines()[-1]


def test_a_search_is_a_setting_of_the_criterion(command: Any, with_head: Any, tmp_path: Path) -> None:
    pytest.importorskip("flashlight.lib.text")
    (tmp_path / "lexicon.txt").write_text("one\ntwo\nsix\n")
    search = f"criterion.config.beam_search={{lexicon: {tmp_path}/lexicon.txt, beam_size: 20}}"
    (tmp_path / "few.tsv").write_text("\n".join([str(WORDS), *(WORDS / "valid.tsv").read_text().splitlines()[1:12]]) + "\n")

    outcome = predict(command, with_head("transcripts"), tmp_path / "out", tmp_path / "few.tsv", search)

    assert outcome.status == 0, outcome.err
    lines = read_lines(tmp_path / "out")
    assert {word for line in lines for word in line["text"].split()} <= {"one", "two", "six"}
    assert all([word["word"] for word in line["words"]] == line["text"].split() for line in lines)


def test_names_are_kept_whatever_they_are(command: Any, with_head: Any, tmp_path: Path) -> None:
    """libsndfile opens no names that are not UTF-8; these are reported byte by byte."""
    names = [b"tab\tline\n.wav", b"no \xff utf-8.wav", "ünïcode.wav".encode()]
    for name in names:
        write_sound(tmp_path / "in" / "plain.wav").rename(tmp_path / "in" / os.fsdecode(name))

    assert predict(command, with_head("transcripts"), tmp_path / "out", tmp_path / "in").status == 0

    assert {os.fsencode(Path(line["path"]).name) for line in read_lines(tmp_path / "out")} == {names[0], names[2]}
    assert any(row["path"].endswith("tab\\tline\\n.wav") for row in read_table(tmp_path / "out"))
    assert names[1] in (tmp_path / "out" / "bad_samples.tsv").read_bytes()


def test_weights_in_single_precision_are_what_decides(command: Any, with_head: Any, tmp_path: Path) -> None:
    """The same files in batches of one and of many."""
    for size in (1, 40):
        settings = [f"prediction.batch_size={size}", "prediction.top_k=3"]
        manifest = ROOT / "manifests" / "digits" / "probe.tsv"
        assert predict(command, with_head("classes"), tmp_path / str(size), manifest, *settings).status == 0
    alone, together = ([line["confidence"] for line in read_lines(tmp_path / str(size))] for size in (1, 40))

    torch.testing.assert_close(torch.tensor(alone), torch.tensor(together), rtol=1e-5, atol=1e-6)
