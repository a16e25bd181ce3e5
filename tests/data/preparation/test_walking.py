"""Every file once: links are followed, and nothing is left out without a word."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from d2v_plugin.data.preparation import walking
from d2v_plugin.data.preparation.common import Report
from d2v_plugin.data.preparation.walking import walk


def write(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)


def find(*roots: Path) -> tuple[list[str], Report]:
    report = Report()
    return [name for _, name in walk(roots, report)], report


def test_linked_folders_and_files_are_found_by_the_name_of_the_link(tmp_path: Path) -> None:
    write(tmp_path / "big" / "dog" / "1", tmp_path / "root" / "cat" / "1", tmp_path / "elsewhere" / "2")
    (tmp_path / "root" / "dog").symlink_to(tmp_path / "big" / "dog")
    (tmp_path / "root" / "cat" / "2").symlink_to(tmp_path / "elsewhere" / "2")
    (tmp_path / "big" / "dog" / "deeper").symlink_to(tmp_path / "elsewhere")

    names, report = find(tmp_path / "root")

    assert names == ["cat/1", "cat/2", "dog/1"]
    assert report.facts == {"links to folders that were followed": ["dog", "dog/deeper"]}
    # Met twice: as a file and in a folder.
    assert report.reasons == {"it was found by another name": 1}


def test_no_file_is_found_twice_whatever_leads_to_it(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(root / "b" / "1")
    (root / "a").symlink_to(root / "b")
    (root / "0").symlink_to(root / "b" / "1")
    os.link(root / "b" / "1", root / "b" / "2")

    names, report = find(root, root / "b")

    # Names without links come first, so that adding a link renames nothing.
    assert names == ["b/1"]
    assert {name for name, _ in report.dropped} == {"0", "a", "b/2", str(root / "b")}


def test_circles_end_and_lead_to_nothing_new(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(root / "a" / "1", tmp_path / "private" / "1")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "higher").symlink_to(tmp_path)
    (root / "self").symlink_to("self")
    (root / "dead").symlink_to("nowhere")

    names, report = find(root)

    assert names == ["a/1"]
    assert report.reasons == {"the link leads back to a folder above it": 2, "it is no file that can be read": 2}


def test_pipes_and_sockets_are_named(tmp_path: Path) -> None:
    write(tmp_path / "root" / "1", tmp_path / "root" / ".hidden")
    os.mkfifo(tmp_path / "root" / "2")
    (tmp_path / "root" / "4").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "root" / "3"))
        names, report = find(tmp_path / "root")

    assert names == ["1"]
    assert [reason.rsplit(" ", 1)[1] for _, reason in report.dropped] == ["pipe.", "socket.", "device."]
    assert report.facts == {"names that begin with a point, not read": 1}


def test_folders_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "root" / "good" / "1", tmp_path / "root" / "locked" / "1")
    scan = os.scandir

    def refuse(path: Path) -> object:
        if path.name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(walking.os, "scandir", refuse)
    names, report = find(tmp_path / "root")

    assert names == ["good/1"]
    assert report.dropped == [("locked", "the folder cannot be read: Permission denied")]
