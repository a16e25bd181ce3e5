"""Splits of manifests: shares, groups, lists, and splits that are given."""

from __future__ import annotations

import json
import re
import runpy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from d2v_plugin.data.dataset import ImageManifest, ManifestConfig, TextManifest
from d2v_plugin.data.text import Tokenizer, TokenStream

MAIN = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "make_manifest.py"))["main"]


def run(*words: object) -> int:
    return MAIN([str(word) for word in words])  # type: ignore[no-any-return]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """60 pictures in 6 folders."""
    for row in range(60):
        path = tmp_path / "in" / f"f{row % 6}" / f"{row:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (row, 0, 0)).save(path)

    return tmp_path / "in"


def read_names(out: Path) -> dict[str, set[str]]:
    """The names of each split's files."""
    dataset = ImageManifest.open(ManifestConfig(path=out))
    return {
        name: {Path(split.location(row).path).relative_to(out.parent).as_posix() for row in range(len(split))}
        for name, split in dataset.splits.items()
    }


def report_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return found


def test_shares_are_exact_and_the_report_says_what_is_in_each_split(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--labels", "folders", "--valid-percent", 10, "--probe-percent", 20, "--test-percent", 5)
    assert run("image", photos, out, *words) == 0
    splits = report_of(out)["splits"]

    assert {name: len(found) for name, found in read_names(out).items()} == {"train": 39, "valid": 6, "probe": 12, "test": 3}
    assert {name: split["percent"] for name, split in splits.items()} == {"train": 65, "valid": 10, "probe": 20, "test": 5}
    assert [sum(split["labels"].values()) for split in splits.values()] == [39, 6, 12, 3]
    assert splits["probe"]["kinds"] == {".png": 12}


def test_groups_are_in_one_split(photos: Path, tmp_path: Path) -> None:
    assert run("image", photos, tmp_path / "out", "--split-by", "folder", "--valid-percent", 20) == 0
    names = read_names(tmp_path / "out")
    folders = {split: {name.split("/")[1] for name in found} for split, found in names.items()}

    assert not folders["train"] & folders["valid"] and len(names["valid"]) == 10


def test_a_table_names_the_groups_and_what_is_not_in_it_is_dropped(photos: Path, tmp_path: Path) -> None:
    rows = [f"f{row % 6}/{row:02}.png\tspeaker {row % 4}" for row in range(58)]
    (tmp_path / "speakers.tsv").write_text("\n".join(rows))
    table = f"table:{tmp_path / 'speakers.tsv'}"
    assert run("image", photos, tmp_path / "out", "--split-by", table, "--valid-percent", 25) == 0
    speakers = {split: {int(name[-6:-4]) % 4 for name in found} for split, found in read_names(tmp_path / "out").items()}

    assert not speakers["train"] & speakers["valid"]
    assert report_of(tmp_path / "out")["reasons"] == {"it has no group": 2}


def test_splits_may_be_given_as_folders(photos: Path, tmp_path: Path) -> None:
    sources = [f"train={photos / 'f0'}", f"train={photos / 'f1'}", f"valid={photos / 'f2'}", f"test-other={photos / 'f3'}"]
    assert run("image", *sources, tmp_path / "out", "--probe-percent", 10) == 0
    names = read_names(tmp_path / "out")

    assert {split: len(found) for split, found in names.items()} == {"train": 18, "probe": 2, "valid": 10, "test-other": 10}
    assert {name.split("/")[1] for name in names["valid"]} == {"f2"}


def test_splits_may_be_given_as_lists(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "valid.txt").write_text("f0/00.png\nf1/01.png\n")
    (tmp_path / "test.txt").write_text("f2/02.png\n")
    lists = ("--split-list", f"valid={tmp_path / 'valid.txt'}", "--split-list", f"test={tmp_path / 'test.txt'}")
    assert run("image", photos, tmp_path / "out", *lists) == 0
    (tmp_path / "all.tsv").write_text("f0/00.png\ttrain\nf1/01.png\tvalid\n")
    assert run("image", photos, tmp_path / "two", "--split-list", tmp_path / "all.tsv") == 0

    assert {split: len(found) for split, found in read_names(tmp_path / "out").items()} == {"train": 57, "valid": 2, "test": 1}
    assert read_names(tmp_path / "two") == {"train": {"in/f0/00.png"}, "valid": {"in/f1/01.png"}}
    assert report_of(tmp_path / "two")["reasons"] == {"it is not in the list of splits": 58}


def test_labels_that_training_never_sees_are_named(photos: Path, tmp_path: Path) -> None:
    words = ("--labels", "folders", "--split-by", "folder", "--valid-percent", 20)
    assert run("image", photos, tmp_path / "out", *words) == 0

    (folder,) = report_of(tmp_path / "out")["splits"]["valid"]["labels"]
    assert report_of(tmp_path / "out")["facts"]["labels that train lacks"] == [folder]


def test_text_is_split_by_a_field_a_file_and_given_files(tmp_path: Path) -> None:
    lines = [{"text": f"alpha beta {row} by {row % 5}", "author": f"a{row % 5}"} for row in range(50)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [*lines, {"text": "alpha of nobody"}])))
    (tmp_path / "b.txt").write_text("\n\n".join(f"alpha gamma {row}" for row in range(30)))

    def read(split: str) -> str:
        dataset = TextManifest.open(ManifestConfig(path=tmp_path / "out"))
        stream = TokenStream(dataset.split(split), dataset.vocabulary)
        return Tokenizer(tmp_path / "out" / "sentencepiece.model").decode(stream.read(0, len(stream)).tolist())

    size = ("--vocabulary-size", 285)
    assert run("text", tmp_path / "a.jsonl", tmp_path / "out", "--split-by", "field:author", "--valid-percent", 20, *size) == 0
    authors = Counter(re.findall(r"by (\d)", read("valid")))
    assert sum(authors.values()) == 10 and len(authors) == 1
    assert report_of(tmp_path / "out")["reasons"] == {"it has no group": 1}

    files = (tmp_path / "a.jsonl", tmp_path / "b.txt")
    assert run("text", *files, tmp_path / "out", "--split-by", "file", "--valid-percent", 30, *size) == 0
    assert "gamma" in read("valid") and "gamma" not in read("train")

    given = (f"train={files[1]}", f"valid={files[0]}")
    assert run("text", *given, tmp_path / "out", *size) == 0
    assert "gamma" not in read("valid") and "gamma" in read("train")


MISTAKES = {
    "a source without a split": (["train=in", "in/f0"], "in/f0 has no split, but other sources have; write"),
    "a folder in two splits": (["train=in/f0", "valid=in/f0"], "is given for the splits `train` and `valid`"),
    "a list and given splits": (["train=in/f0", "--split-list", "list"], "cannot be combined"),
    "more than all": (["in", "--valid-percent", "70", "--test-percent", "40"], "are 110 together"),
    "a share below 0": (["in", "--probe-percent", "-1"], "`--probe-percent` must be from 0"),
    "a list that is wrong": (["in", "--split-list", "wrong"], "wrong:2: a line must be a path, a tab and a split"),
    "too few groups": (
        ["in", "--split-by", "regex:(in|f)", "--valid-percent", "5"],
        "A split would be empty: 1 groups",
    ),
    "a file in two lists": (["in", "--split-list", "valid=list", "--split-list", "test=list"], "is in the split `valid`, too"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_with_a_line_and_nothing_is_written(
    name: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list").write_text("f0/00.png\ttrain\n")
    (tmp_path / "wrong").write_text("f0/00.png\ttrain\nf0/06.png\n")
    words, message = MISTAKES[name]

    assert run("image", words[0], *words[1:], "out") == 2 if "--" not in " ".join(words) else run("image", *_place(words)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def _place(words: list[str]) -> list[str]:
    """OUT stands before the options."""
    first = next(index for index, word in enumerate(words) if word.startswith("--"))
    return [*words[:first], "out", *words[first:]]
