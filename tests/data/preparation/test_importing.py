"""Manifests and corpora of other toolkits become ours, and are read back by the toolkits themselves where they are installed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from fairseq2.recipe.error import RecipeError

from d2v_plugin.cli.manifest import IMPORTED, main
from d2v_plugin.data.audio import AudioReadingConfig, read_recording
from d2v_plugin.data.dataset import AudioManifest, ImageManifest, ManifestConfig, TextManifest
from d2v_plugin.data.image_decoding import decode
from d2v_plugin.data.preparation.importing.prepare import READERS, import_manifests
from d2v_plugin.data.recordings import recording_of
from d2v_plugin.data.transcripts import Lines
from tests.data.preparation.corpora import (
    FEATURES,
    RATE,
    encode,
    espnet,
    fairseq,
    kaldi,
    lhotse,
    lhotse_cuts,
    librispeech,
    make_sounds,
    nemo,
    timit,
    write,
    write_table,
)

AS_IT_IS = AudioReadingConfig(normalize=False)
Row = tuple[str, int | None, int, str | None, str | None]


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    return make_sounds(tmp_path / "wav")


def run(source: object, out: Path, **options: Any) -> Any:
    paths = [Path(str(path)) for path in (source if isinstance(source, list) else [source])]
    return import_manifests(paths, out, **{"valid_percent": 0.0, "seed": 1, "workers": 1, "shard_size": None, **options})


def read(out: Path, split: str = "train") -> list[Row]:
    """File, start, samples, label and speaker of each row; the sound is what its file has there."""
    manifest = AudioManifest.open(ManifestConfig(path=out)).split(split)
    rows = []
    for row in range(len(manifest)):
        recording = recording_of(manifest, row)
        values, _ = soundfile.read(recording.location.path, dtype="float32")
        if recording.location.size is None:
            part = values[recording.start : recording.start + recording.size]
            np.testing.assert_array_equal(read_recording(recording, AS_IT_IS), part)
        start = recording.start if recording.is_segment else None
        name = Path(recording.location.path).name
        rows.append((name, start, recording.size, manifest.text("label", row), manifest.text("speaker", row)))
    return sorted(rows, key=str)


HELLO, AGAIN = ("a.wav", None, RATE, "hello world", "ann"), ("b.wav", None, 2 * RATE, "again", "bob")
CASES: dict[str, tuple[Callable[[Path, Path], Path], dict[str, list[Row]], list[str]]] = {
    "kaldi": (
        kaldi,
        {
            "train": [
                ("a.wav", 1600, 8000, "hello world", "ann"),
                ("a.wav", 9600, 6400, "again", "ann"),
                ("b.wav", 8000, 24_000, "x y", "bob"),
            ]
        },
        [
            *("gone: there is a text, but no such utterance", "d: the recording has no segment"),
            "c1: its sound comes from a command, and none is run",
            *("e1: its recording is not in wav.scp", "a3: one channel of several is chosen, but ours are averaged"),
        ],
    ),
    "espnet": (espnet, {"train": [HELLO, AGAIN]}, []),
    "nemo": (
        nemo,
        {"train": [HELLO, ("b.wav", 8000, 20_000, "again", None)]},
        ["../wav/b.wav (line 3): The segment does not lie within the recording", "../wav/b.wav (line 4): it has no text"],
    ),
    "lhotse cuts": (
        lhotse_cuts,
        {"train": [HELLO, ("b.wav", 16_000, 8000, "one", "bob"), ("b.wav", 24_000, 4000, "two", "eve")]},
        ["b-1: its sound is transformed when it is read", "m: it is a MixedCut, and only a MonoCut is a part of one recording"],
    ),
    "lhotse": (
        lhotse,
        {"train": [("a.wav", 0, 8000, "hello", "ann"), ("a.wav", 8000, 8000, "world", "ann")]},
        ["b: the recording has no supervision", "z: its recording is not in c_recordings_x.jsonl"],
    ),
    "timit": (
        timit,
        {
            "train": [("Sa.WAV", None, RATE, "She had a suit.", "FCJF0")],
            "test": [("Sb.WAV", None, 2 * RATE, "She had a suit.", "FCJF0")],
        },
        [],
    ),
    "librispeech": (
        librispeech,
        {
            "train": [
                ("84-121123-0000.flac", None, RATE, "HELLO", "84"),
                ("84-121123-0001.flac", None, 2 * RATE, "GO ON", "84"),
            ]
        },
        ["84-121123-0002: there is a text, but no such utterance"],
    ),
    "fairseq": (
        fairseq,
        {"train": [("a.wav", None, RATE, "hi a", None)], "valid": [("b.wav", None, 2 * RATE, "hi a", None)]},
        [],
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_what_others_wrote_becomes_ours_and_what_is_dropped_is_named(kind: str, tmp_path: Path, sounds: Path) -> None:
    make, expected, dropped = CASES[kind]
    source = make(tmp_path / "theirs", sounds)
    report = run(source, tmp_path / "out")

    assert {split: read(tmp_path / "out", split) for split in expected} == expected
    assert sorted(f"{name}: {reason.partition(': ')[0]}" for name, reason in report.dropped) == sorted(dropped)
    assert report.num_kept == 0
    assert run(source, tmp_path / "out").num_kept == sum(map(len, expected.values()))


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no number": (
        lambda f: write(f / "k/wav.scp", "a a.wav") and write(f / "k/segments", "a1 a 0 x") and f / "k",
        r"k/segments:1: `end` must be",
    ),
    "turned": (
        lambda f: write(f / "k/wav.scp", "a a.wav") and write(f / "k/segments", "a1 a 2 1") and f / "k",
        r"segments:1: the segment ends",
    ),
    "twice": (lambda f: write(f / "k/wav.scp", "a a.wav", "a b.wav") and f / "k", r"wav.scp:2: `a` stands on line 1, too"),
    "no JSON": (lambda f: write(f / "n.json", {"audio_filepath": "a"}, "{"), r"n.json:2: the line is no JSON"),
    "no path": (
        lambda f: write(f / "n.json", {"audio_filepath": "a"}, {"duration": 1}),
        r"n.json:2: there is no `audio_filepath`",
    ),
    "no time": (
        lambda f: write(f / "n.json", {"audio_filepath": "a", "offset": "x"}),
        r"n.json:1: `offset` must be a number of sec",
    ),
    "labels": (
        lambda f: write(f / "t.tsv", "/", "a.wav\t9") and write(f / "t.ltr", "a |", "b |") and f / "t.tsv",
        r"t.tsv:2: there are 1 rec",
    ),
    "several": (
        lambda f: write(f / "a_cuts.jsonl", {}) and write(f / "b_cuts.jsonl", {}) and f,
        "has 2 files of cuts or recordings",
    ),
    "unknown": (lambda f: f, r"is nothing that is known; if it is, name it with --kind fairseq\|kaldi"),
    "missing": (lambda f: f / "nowhere", "nowhere does not exist"),
    "no field": (
        lambda f: [write(f / "n.json", {"audio_filepath": "a", "text": "b"}), "--labels", "x"],
        "no such field; there are: text",
    ),
    "no table": (lambda f: write(f / "t.parquet", "no table"), "t.parquet cannot be read: "),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_a_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if case == "no table":
        pytest.importorskip("pyarrow")
    make, message = WRONG[case]
    source = make(tmp_path)
    words = source if isinstance(source, list) else [source]

    assert main(["import", str(words[0]), str(tmp_path / "out"), *words[1:]]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said) and "Traceback" not in said
    assert not (tmp_path / "out" / "train.tsv").exists()


def test_labels_are_any_field_and_speakers_stay_together(tmp_path: Path, sounds: Path) -> None:
    source = lhotse_cuts(tmp_path / "theirs", sounds)
    run(source, tmp_path / "speakers", labels="speaker", valid_percent=40.0, split_by="field:speaker")
    dataset = AudioManifest.open(ManifestConfig(path=tmp_path / "speakers"))
    assert dataset.class_names == ["ann", "bob", "eve"]
    parts = [dataset.split(split).distinct("speaker") for split in ("train", "valid")]
    assert sorted(parts[0] + parts[1]) == ["ann", "bob", "eve"]

    run(timit(tmp_path / "timit", sounds), tmp_path / "phones", labels="phones")
    lines = Lines(AudioManifest.open(ManifestConfig(path=tmp_path / "phones")).split("test"))
    assert lines.path.name == "test.ltr" and lines.text(0) == "h#shiy"

    report = run(source, tmp_path / "none", labels="none")
    assert [row[3] for row in read(tmp_path / "none")] == [None] * 3 and report.facts["speakers"] == 3


def test_a_recording_in_an_archive_is_read_where_it_lies(tmp_path: Path, sounds: Path) -> None:
    content = b"".join(f"{name} ".encode() + (sounds / f"{name}.wav").read_bytes() for name in "ab")
    (tmp_path / "wav.ark").write_bytes(content)
    second = content.index(b"b RIFF") + 2
    write(tmp_path / "data/wav.scp", f"a {tmp_path}/wav.ark:2", f"b {tmp_path}/wav.ark:{second}", f"c {tmp_path}/wav.ark:5")
    report = run(tmp_path / "data", tmp_path / "out")

    assert [reason.partition(":")[0] for _, reason in report.dropped] == ["what lies in the archive is no WAV, or is missing"]
    manifest = AudioManifest.open(ManifestConfig(path=tmp_path / "out")).split("train")
    for row, name in enumerate("ab"):
        values, _ = soundfile.read(sounds / f"{name}.wav", dtype="float32")
        np.testing.assert_array_equal(read_recording(recording_of(manifest, row), AS_IT_IS), values)


def test_kaldi_reads_the_same_sound(tmp_path: Path, sounds: Path) -> None:
    kaldiio = pytest.importorskip("kaldiio")
    write(tmp_path / "k/wav.scp", f"a {sounds}/a.wav", f"b {sounds}/b.wav")
    write(tmp_path / "k/segments", "a1 a 0.11 0.63", "b1 b 0.05 1.96")
    run(tmp_path / "k", tmp_path / "out")
    theirs = kaldiio.load_scp(str(tmp_path / "k/wav.scp"), segments=str(tmp_path / "k/segments"))
    manifest = AudioManifest.open(ManifestConfig(path=tmp_path / "out")).split("train")
    for row, name in enumerate(("a1", "b1")):
        rate, values = theirs[name]
        ours = read_recording(recording_of(manifest, row), AS_IT_IS)
        assert rate == RATE
        np.testing.assert_array_equal(np.round(ours * 32768), values)


def test_lhotse_reads_the_same_sound_text_and_speakers(tmp_path: Path, sounds: Path) -> None:
    lhotse = pytest.importorskip("lhotse")
    recordings = lhotse.RecordingSet.from_recordings(lhotse.Recording.from_file(path) for path in sorted(sounds.glob("*.wav")))
    said = lhotse.SupervisionSet.from_segments(
        lhotse.SupervisionSegment(f"{name}{n}", name, start=n * 0.3, duration=0.3, text=f"word {n}", speaker=name)
        for name in "ab"
        for n in range(3)
    )
    cuts = lhotse.CutSet.from_manifests(recordings=recordings, supervisions=said).trim_to_supervisions(keep_overlapping=False)
    cuts.to_file(tmp_path / "cuts.jsonl.gz")
    recordings.to_file(tmp_path / "x_recordings.jsonl.gz")
    said.to_file(tmp_path / "x_supervisions.jsonl.gz")
    for name in ("cuts.jsonl.gz", "x_recordings.jsonl.gz"):
        run(tmp_path / name, tmp_path / name[:4])
        manifest = AudioManifest.open(ManifestConfig(path=tmp_path / name[:4])).split("train")
        found = {manifest.text("speaker", row) + manifest.text("label", row)[-1]: row for row in range(len(manifest))}
        assert len(found) == len(cuts.to_eager()) == 6
        for cut in cuts:
            (theirs,) = cut.supervisions
            row = found[theirs.id]
            assert (manifest.text("label", row), manifest.text("speaker", row)) == (theirs.text, theirs.speaker)
            np.testing.assert_array_equal(read_recording(recording_of(manifest, row), AS_IT_IS), cut.load_audio()[0])


def test_datasets_that_hugging_faces_library_saves_are_read(tmp_path: Path, sounds: Path) -> None:
    datasets = pytest.importorskip("datasets")
    sound = {"audio": [{"bytes": encode("audio", row, sounds), "path": None} for row in range(4)], "text": list("abcd")}
    picture = {"image": [{"bytes": encode("image", row, sounds), "path": None} for row in range(4)], "label": [0, 1, 1, 0]}
    label = datasets.ClassLabel(names=["cat", "dog"])
    for name, columns, features in (
        ("sound", sound, {"audio": datasets.Audio(), "text": datasets.Value("string")}),
        ("picture", picture, {"image": datasets.Image(), "label": label}),
    ):
        saved = datasets.Dataset.from_dict(columns, features=datasets.Features(features)).train_test_split(0.5, shuffle=False)
        saved.save_to_disk(tmp_path / f"{name}_saved")
        run(tmp_path / f"{name}_saved", tmp_path / name)
    split = AudioManifest.open(ManifestConfig(path=tmp_path / "sound")).split("test")
    assert [split.text("label", row) for row in range(2)] == ["c", "d"]
    values, _ = soundfile.read(sounds / "b.wav", dtype="float32")
    np.testing.assert_array_equal(read_recording(recording_of(split, 1), AS_IT_IS), values)
    split = ImageManifest.open(ManifestConfig(path=tmp_path / "picture")).split("test")
    assert [split.text("label", row) for row in range(2)] == ["dog", "cat"]
    assert [int(decode(split.location(row))[0, 0, 0]) for row in range(2)] == [100, 150]


@pytest.mark.parametrize("name", ["train.parquet", "saved"])
def test_tables_of_pictures_and_recordings_become_shards(name: str, tmp_path: Path, sounds: Path) -> None:
    data = [{"bytes": encode("image", number, sounds), "path": None} for number in range(4)]
    data[3]["bytes"] = b"broken"
    source = write_table(tmp_path / name, {"image": data, "label": [0, 1, 1, 0]}, image={"_type": "Image"}, **FEATURES)
    report = run(source, tmp_path / "out", shard_size=100)
    dataset = ImageManifest.open(ManifestConfig(path=tmp_path / "out"))
    split = dataset.split("train")
    assert dataset.class_names == ["cat", "dog"] and [split.text("label", row) for row in range(3)] == ["cat", "dog", "dog"]
    assert [int(decode(split.location(row))[0, 0, 0]) for row in range(3)] == [0, 50, 100]
    assert [title.rpartition(":")[2] for title, _ in report.dropped] == ["3"]
    assert len(list((tmp_path / "out").glob("rows-*.zip"))) > 1

    data = [{"bytes": encode("audio", 0, sounds), "path": "a.wav"}, {"bytes": None, "path": str(sounds / "b.wav")}, None]
    columns = {"audio": data, "sentence": ["hello  world", "again", "gone"], "speaker_id": [7, 8, 9]}
    report = run(write_table(tmp_path / f"sound_{name}", columns), tmp_path / "sound")
    split = AudioManifest.open(ManifestConfig(path=tmp_path / "sound")).split("train")
    assert [split.text("label", row) for row in range(2)] == ["hello world", "again"]
    assert [split.text("speaker", row) for row in range(2)] == ["7", "8"]
    assert report.dropped == [
        (f"{'data-00000-of-00001.arrow' if name == 'saved' else 'sound_train.parquet'}:2", "its audio is empty")
    ]
    values, _ = soundfile.read(sounds / "a.wav", dtype="float32")
    np.testing.assert_array_equal(read_recording(recording_of(split, 0), AS_IT_IS), values)


def test_tables_of_texts_become_tokens_and_splits_are_as_they_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    for split, count in (("train", 8), ("validation", 4)):
        texts = [f"{word} words that are common to all of them" for word in ("many", "few", "some", "such") * (count // 4)]
        write_table(folder / split, {"text": [*texts[:-1], None], "label": [n % 2 for n in range(count)]}, **FEATURES)
    write(folder / "dataset_dict.json", {"splits": ["train", "validation"]})
    report = run(folder, tmp_path / "out", vocabulary_size=300)
    dataset = TextManifest.open(ManifestConfig(path=tmp_path / "out"))

    assert report.splits["train"]["documents"] == 7 and report.splits["valid"]["documents"] == 3
    assert dataset.split("valid").distinct("label") == ["cat", "dog"]
    assert {reason for _, reason in report.dropped} == {"the text is null, not a string"}
    with pytest.raises(RecipeError, match="has 0 columns that may be read"):
        run(write_table(tmp_path / "n.parquet", {"number": [1, 2]}), tmp_path / "none")


def test_the_command_knows_every_kind() -> None:
    assert sorted(IMPORTED) == sorted([*READERS, "parquet"])
