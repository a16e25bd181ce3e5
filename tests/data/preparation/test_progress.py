"""Long work says how far it is, also where nobody watches a terminal."""

from __future__ import annotations

import pytest

from d2v_plugin.data.preparation import progress


def test_a_redirected_run_prints_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(progress, "monotonic", lambda: next(clock))

    assert list(progress.show_progress(range(6), total=6, title="Reading")) == [*range(6)]
    assert capsys.readouterr().err.splitlines() == [
        "Reading: 3 of 6 (50 %), 0.25 a second, 12 s left",
        "Reading: 6 of 6 (100 %), 0.25 a second, 0 s left",
        "Reading: 6 in 28 s",
    ]
    list(progress.show_progress(range(3), total=None, title="Reading"))
    assert capsys.readouterr().err.splitlines() == ["Reading: 3, 0.25 a second", "Reading: 3 in 16 s"]


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    list(progress.show_progress(range(100), total=100, title="Reading"))

    assert capsys.readouterr().err == ""
