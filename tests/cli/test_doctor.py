"""`fairseq2 doctor` tells what works, and answers where nothing does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from d2v_plugin.cli.doctor import checks, report


def test_what_works_is_said_with_versions(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real checks are run in the next test; here none is left, which costs no process."""
    monkeypatch.setattr(report, "run_apart", lambda names: [(name, True, "1.0") for name in names])
    outcome = command("doctor")

    assert outcome.status == 0, outcome.out
    assert "ok     torch            2.9.1" in outcome.out and "ok     fairseq2n        0.8.1" in outcome.out
    assert f"ok     checkpoints      can be written to {Path.cwd()}" in outcome.out
    assert "cores may be used" in outcome.out and outcome.out.endswith("Everything needed works.\n")


def test_every_check_works_here() -> None:
    results = report.run_apart([*checks.NEEDED, *checks.OPTIONAL])

    assert [name for name, _, _ in results] == [*checks.NEEDED, *checks.OPTIONAL]
    assert [result for result in results if not result[1] and result[2] != checks.MISSING] == []


def test_a_check_that_ends_its_process_does_not_end_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a library that was built for another version of PyTorch does."""
    (tmp_path / "safetensors").mkdir()
    (tmp_path / "safetensors" / "__init__.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    (tmp_path / "soxr.py").write_text("raise ImportError('no such symbol')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    results = {name: (works, text) for name, works, text in report.run_apart(["safetensors", "soxr", "soundfile"])}

    assert results["safetensors"][0] is False and "it ended the process (status -11)" in results["safetensors"][1]
    assert results["soxr"] == (False, "ImportError: no such symbol")
    assert results["soundfile"][0] is True


def test_something_broken_gives_status_1_and_a_folder_that_cannot_be_written_to_is_named(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = report.check_folder
    monkeypatch.setattr(report, "run_apart", lambda names: [(name, name != "fairseq2", "1.0") for name in names])
    monkeypatch.setattr(report, "check_folder", lambda folder: check(tmp_path / "gone"))
    outcome = command("doctor")

    assert outcome.status == 1
    assert f"BROKEN checkpoints      cannot be written to {tmp_path / 'gone'}: No such file" in outcome.out
    assert "2 broken: fairseq2, checkpoints" in outcome.out


def test_versions_that_do_not_fit_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"torch": "2.10.0+cpu", "fairseq2": "0.8.1", "fairseq2n": "0.8.1", "torchvision": "0.24.1"}
    monkeypatch.setattr(report, "version", installed.__getitem__)
    results = {name: (works, text) for name, works, text in report.check_pins()}

    assert results["torch"][0] is False
    assert results["torch"][1].startswith("2.10.0+cpu; fairseq2n 0.8.1 wants 2.9.1, torchvision 0.24.1 wants 2.9.1")
    assert results["torchvision"][0] is True


def test_it_answers_where_nothing_else_can_be_imported(tmp_path: Path) -> None:
    for name in ("torch", "fairseq2", "fairseq2n", "numpy", "rich", "ruamel", "typing_extensions"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('it is broken')")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"}
    done = subprocess.run(
        [sys.executable, "-m", "d2v_plugin", "doctor"], capture_output=True, text=True, env=environment, timeout=300
    )

    assert done.returncode == 1, done.stderr
    assert "BROKEN fairseq2         ImportError: it is broken" in done.stdout and "Traceback" not in done.stderr


def test_doctor_takes_nothing(command: Any) -> None:
    outcome = command("doctor", "now")

    assert outcome.status == 2 and "takes no `now`" in outcome.err
    assert "usage: fairseq2 doctor" in command("doctor", "--help").out
