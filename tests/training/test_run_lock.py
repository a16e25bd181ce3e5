"""One run per directory; a lock ends with its process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from fairseq2.recipe.error import RecipeError

from d2v_plugin.training.run_lock import lock_run


def test_a_second_process_is_told_who_has_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    is_locked, tell = os.pipe()
    if (child := os.fork()) == 0:
        lock_run(tmp_path)
        os.write(tell, b"1")
        signal.pause()
    assert os.read(is_locked, 1) == b"1"
    try:
        with pytest.raises(RecipeError, match=rf"going on \(process {child} on .*choose another output directory"):
            lock_run(tmp_path / "other", tmp_path)
        monkeypatch.setenv("RANK", "1")
        lock_run(tmp_path)  # the ranks of a run share it
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

    monkeypatch.setenv("RANK", "0")
    lock_run(tmp_path)
    lock_run(tmp_path)
