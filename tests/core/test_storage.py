"""Whole or not at all, whatever fails on the way."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from d2v_plugin.core.storage import put_in_place, remove_directory, write_atomically


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "down" / "file"
    write_atomically(path, "é\udcff")
    assert path.read_bytes() == b"\xc3\xa9\xff"
    write_atomically(path, b"\0")

    assert path.read_bytes() == b"\0" and names(path.parent) == ["file"]
    other = tmp_path / "other"
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError("No space left on device")

    write_atomically(tmp_path / "file", "old")
    monkeypatch.setattr("d2v_plugin.core.storage.os.fsync", fail)

    with pytest.raises(OSError, match="No space"):
        write_atomically(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old" and names(tmp_path) == ["file"]


def test_many_may_write_the_same_file(tmp_path: Path) -> None:
    contents = [str(number) * 100_000 for number in range(10)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: write_atomically(tmp_path / "file", content), contents * 3))

    assert (tmp_path / "file").read_text() in contents and names(tmp_path) == ["file"]


def test_a_directory_takes_the_place_of_another(tmp_path: Path) -> None:
    for name, file in (("aside", "new/x"), ("target", "old")):
        write_atomically(tmp_path / name / file, name)
    put_in_place(tmp_path / "aside", tmp_path / "target")
    assert names(tmp_path) == ["target", "target/new", "target/new/x"]

    remove_directory(tmp_path / "target")
    assert names(tmp_path) == []
