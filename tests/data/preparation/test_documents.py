"""From text files to documents: what is no text is dropped, named and counted."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
from fairseq2.recipe.error import RecipeError

from d2v_plugin.data.preparation.common import Report
from d2v_plugin.data.preparation.documents import Document, read_documents

MARK = b"\xef\xbb\xbf"


def read(path: Path) -> tuple[list[Document], Report]:
    report = Report()
    return list(read_documents([path], report)), report


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": null}', "the text is null, not a string"),
        ('{"text": 5}', "the text is a number, not a string"),
        ('{"text": true}', "the text is a truth value, not a string"),
        ('{"text": ["a", "b"]}', "the text is a list, not a string"),
        ('{"text": {"a": "b"}}', "the text is an object, not a string"),
        ('{"text": " \\n "}', "the text is empty"),
        ('{"text": "a\\ud800"}', "it has half a character (a lone surrogate)"),
        ('{"text": "a\\u0000b"}', "it has a NUL, as only files have that are no text"),
        ('{"text": "a", "label": ["x"]}', "the label is a list, not a string"),
        ('{"text": "a", "label": NaN}', "the label is a number, not a string"),
        ('{"text": "a", "label": "x\\ty"}', "the label has a tab or a line break"),
        ("5", "no object with a `text`"),
        ('{"body": "a"}', "no object with a `text`"),
        ("{broken", "no object with a `text`"),
        ("[" * 20_000, "no object with a `text`"),
    ],
)
def test_json_lines_without_a_text_are_dropped(line: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(f'{{"text": "good"}}\n{line}\n{{"text": "good", "label": 3}}\n')
    found, report = read(path)

    assert [(document.name, document.label) for document in found] == [("in.jsonl:1", None), ("in.jsonl:3", "3")]
    assert report.reasons == {reason: 1} and report.dropped[0][0] == "in.jsonl:2"


def test_a_mark_is_ignored_and_line_feeds_alone_end_lines(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(MARK + json.dumps({"text": "a\u2028b\nc"}, ensure_ascii=False).encode() + b"\r\n")
    (tmp_path / "in.txt").write_bytes(MARK + "a\x0cb\u2028c\x1cd\r\n\r\ne\n".encode())

    assert [document.lines for document in read(tmp_path / "in.jsonl")[0]] == [["a\u2028b", "c"]]
    assert [document.lines for document in read(tmp_path / "in.txt")[0]] == [["a\x0cb\u2028c\x1cd"], ["e"]]


def test_plain_documents_that_are_no_utf8_are_dropped_and_the_others_keep_their_names(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes("one\n\ntwo\ncafé\n\nthree\n".encode("latin-1"))
    found, report = read(tmp_path / "in.txt")

    assert [(document.name, document.lines) for document in found] == [("in.txt:0", ["one"]), ("in.txt:2", ["three"])]
    assert report.dropped == [("in.txt:1", "byte 4 is no UTF-8: line 4")]


@pytest.mark.parametrize("damage", ["truncated", "altered", "no gzip"])
def test_a_damaged_archive_loses_its_rest_alone(damage: str, tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(b"text %d\n\n" % number for number in range(9000)))
    content = {"truncated": whole[:-9], "altered": whole[:3000] + bytes(100) + whole[3100:], "no gzip": b"plain"}[damage]
    (tmp_path / "in.txt.gz").write_bytes(content)
    (tmp_path / "other.txt").write_text("good\n")
    found, report = read(tmp_path)

    assert found[-1].lines == ["good"]
    assert [name for name, reason in report.dropped if reason.startswith("the rest of the file: ")] == ["in.txt.gz"]


def test_pipes_are_named_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "good.txt").write_text("good\n")
    found, report = read(tmp_path)

    assert len(found) == 1 and "a pipe" in report.dropped[0][1]
    with pytest.raises(RecipeError, match="neither a file nor a folder"):
        read(tmp_path / "pipe.txt")
