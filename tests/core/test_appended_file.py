"""Whole lines or none, whatever the disk says."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from d2v_plugin.core import appended_file
from d2v_plugin.core.appended_file import AppendedFile


@pytest.fixture(autouse=True)
def silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits of a test hold for the file to which pytest sends what is logged, too."""
    monkeypatch.setattr(appended_file.log, "warning", lambda *message: None)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk on which no file may grow beyond some bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_lines_that_do_not_fit_wait_for_the_next(tmp_path: Path) -> None:
    file = AppendedFile(tmp_path / "deep" / "file.tsv", "header\n")
    file.add("one\n")
    with largest_file(20):  # room for a part of what comes
        file.add("a second line\n")
        assert file.path.read_text() == "header\none\n"
    file.add("three\udcff\n")

    assert file.path.read_bytes() == b"header\none\na second line\nthree\xff\n"


def test_what_waits_is_tried_again_without_new_lines(tmp_path: Path) -> None:
    file = AppendedFile(tmp_path / "file")
    with largest_file(0):
        file.add("one\n")
    file.add("")
    file.add("")

    assert file.path.read_text() == "one\n"


def test_a_device_that_is_always_full_costs_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").symlink_to("/dev/full")
    file = AppendedFile(tmp_path / "file")
    for _ in range(3):
        file.add("one\n")
