"""Line feeds alone end lines, in every reader of text."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from fairseq2.recipe.error import RecipeError

from d2v_plugin.data.dataset import AudioManifest, ManifestConfig
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.data.lines import read_content, read_json, read_lines, split_lines
from d2v_plugin.data.problems import ManifestError, Problems
from d2v_plugin.data.tables import TableLayout, read_tables
from d2v_plugin.data.transcripts import BLANK, Characters, Lines, find_lines, read_transcripts
from d2v_plugin.scoring.ctc_decoding import read_lexicon

MARK = b"\xef\xbb\xbf"
# What Python's splitlines() ends lines at.
SEPARATORS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


def test_other_separators_and_lone_carriage_returns_are_part_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(MARK + f"a{SEPARATORS}b\rc\r\n\n{'d'}".encode())

    assert read_lines(path, Problems()) == [f"a{SEPARATORS}b\rc", "", "d"]
    assert split_lines(b"") == [] and split_lines(b"\n") == [b""]


def test_what_is_no_utf8_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes("good\ncafé\n".encode("latin-1"))
    problems = Problems()
    read_lines(path, problems)

    assert problems.messages == [(str(path), 2, "byte 4 is no UTF-8")]


def test_pipes_folders_and_missing_files_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, reason in (("pipe", "is no file, but a pipe"), ("", "is no file, but a folder"), ("missing", "No such file")):
        with pytest.raises(RecipeError, match=reason):
            read_content(tmp_path / name)


def test_json_may_have_a_mark_and_is_told_if_broken(tmp_path: Path) -> None:
    path = tmp_path / "json"
    path.write_bytes(MARK + b'{"a": 1}')
    assert read_json(path) == {"a": 1}
    for broken in (b"{", b"\xff", b"[" * 100_000):
        path.write_bytes(broken)
        with pytest.raises(RecipeError, match="is no JSON"):
            read_json(path)


def open_recordings(folder: Path, labels: str = "") -> Lines:
    rows = "".join(f"{row}.wav\t16000{labels}\n" for row in range(2))
    (folder / "train.tsv").write_text(f".\n{rows}", encoding="utf-8")
    return find_lines(AudioManifest.open(ManifestConfig(path=folder, check_files=False)))["train"]


def test_letters_and_their_dictionary_may_have_a_mark_and_any_separator(tmp_path: Path) -> None:
    (tmp_path / "train.ltr").write_bytes(MARK + "a \u2028 b |\r\nb |\r\n".encode())
    (tmp_path / "dict.ltr.txt").write_bytes(MARK + b"a 1\r\nb 1\r\n| 1\r\n")
    lines = open_recordings(tmp_path)
    labels = Characters(tmp_path / "dict.ltr.txt").find_labels([])

    assert labels.names == [BLANK, "a", "b", "|"]
    assert [lines.text(row) for row in range(2)] == ["ab", "b"]
    found = read_transcripts({"train": lines}, Characters(None), labels)["train"]
    assert found.ends.tolist() == [3, 5]


@pytest.mark.parametrize("name", ["train.ltr", "dict.ltr.txt"])
def test_letters_and_dictionaries_that_are_no_utf8_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "train.ltr").write_text("a |\nb |\n")
    (tmp_path / "dict.ltr.txt").write_text("a 1\nb 1\n| 1\n")
    (tmp_path / name).write_bytes(b"a |\n\xe9 1\n")
    with pytest.raises(ManifestError, match=rf"{name}:2: byte 1 is no UTF-8"):
        open_recordings(tmp_path)
        Characters(tmp_path / "dict.ltr.txt").find_labels([])


@pytest.mark.parametrize("symbol", ["|", "▁"])
def test_signs_between_words_in_plain_transcripts_are_refused_rather_than_lost(symbol: str, tmp_path: Path) -> None:
    lines = open_recordings(tmp_path, f"\tone{symbol}two")
    with pytest.raises(ManifestError, match=r"train\.tsv:2: the transcript has `.`, which stands between words"):
        read_transcripts({"train": lines}, Characters(None), Characters(None).find_labels([lines]))


def test_tables_and_lexica_have_the_same_lines(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_bytes(MARK + "sentence\tlabel\r\nfirst\u2028half\x85\tyes\r\n".encode())
    table = read_tables(tmp_path, TableLayout(), Problems())["train"]
    assert (table.texts, table.labels) == ([["first\u2028half"]], ["yes"])

    lexicon = tmp_path / "lexicon"
    lexicon.write_bytes(MARK + b"a\x0c\ta b\n")
    assert read_lexicon(lexicon, LabelSet([BLANK, "a", "b"])) == [("a", [1, 2])]
    lexicon.write_bytes(b"a\ta\n\xff\ta\n")
    with pytest.raises(ManifestError, match="lexicon:2: byte 1 is no UTF-8"):
        read_lexicon(lexicon, LabelSet([BLANK, "a", "b"]))


def test_rows_of_a_manifest_do_not_shift(tmp_path: Path) -> None:
    lines = open_recordings(tmp_path, f"\tone{SEPARATORS}two")

    assert len(lines) == 2 and lines.text(1) == f"one{SEPARATORS}two"
    found = read_transcripts({"train": lines}, Characters(None), Characters(None).find_labels([lines]))["train"]
    assert np.diff(found.ends).tolist() == [8]
