"""The check of GPUs: a dry run of each step, limits, and what is carried to a host without network."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tools.benchmark.__main__ import main as benchmark
from tools.gpu_check import carried, driver
from tools.gpu_check.__main__ import main, make_parser
from tools.gpu_check.driver import LIMITS, Options, run_check
from tools.gpu_check.steps import run_step

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("step", ["environment", "parity", "masks", "curves", "kernels", "speed_audio", "ranks"])
def test_a_step_runs_dry(step: str, tmp_path: Path) -> None:
    findings = run_step(step, Options(tmp_path, "cpu", tiny=True))

    assert json.loads((tmp_path / f"{step}.json").read_text()) == json.loads(json.dumps(findings, default=str))
    match step:
        case "environment":
            assert findings["torch"] and findings["product, torch.bfloat16, TFLOP/s"] > 0
        case "parity":
            assert findings["passed"] > 3 and 0 < max(findings["errors"].values()) < 1e-5
        case "masks":
            assert findings["skipped"] + findings["passed"] >= 2
        case "curves":
            digits = findings["digits"]
            assert digits["difference of whole and resumed"] == 0.0 == digits["difference of cpu and device"]
            assert 0 < digits["difference of fp32 and bf16"] < 0.1 and not torch.are_deterministic_algorithms_enabled()
        case "kernels":
            assert (
                findings["attention: audio, student"]["ours"] > 0 and findings["convolution: image, decoder"]["channels last"] > 0
            )
        case "speed_audio":
            assert findings["rows"][0]["share"] > 0 and findings["profile"]["longest"]
            assert (tmp_path / "profile_audio.txt").exists()
        case "ranks":
            assert findings["ddp over gloo"]["difference from one process"] < 1e-5


def test_steps_end_in_time_and_leave_what_they_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stand-ins: one ends well, one fails, one hangs with a child of its own; nothing is left to the last."""
    code = """
import os, subprocess, sys, time
step, out = sys.argv[1:3]
open(f"{out}/{step}.json", "w").write('{"half": 1}')
if step == "parity": sys.exit("it differs")
if step == "masks":
    child = subprocess.Popen(["sleep", "60"])
    open(f"{out}/child", "w").write(str(child.pid))
    time.sleep(60)
"""
    interpreter = tmp_path / "python"
    interpreter.write_text(f"#!/bin/sh\nexec {sys.executable} -S -c {shlex.quote(code)} $4 $5\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr(driver.sys, "executable", str(interpreter))
    monkeypatch.setattr(driver, "SHORTEST", 0.5)
    monkeypatch.setattr(driver, "LIMITS", {**dict.fromkeys(LIMITS, 20.0), "masks": 2.0})
    monkeypatch.setattr(driver.signal, "signal", lambda *arguments: None)

    assert run_check(Options(tmp_path, "cpu"), ["environment", "parity", "masks"], 60.0, {}) == 1
    assert run_check(Options(tmp_path, "cpu"), ["kernels"], 0.1, {}) == 1

    results = json.loads((tmp_path / "results.json").read_text())
    ended = {step: result["ended"] for step, result in results.items()}
    assert ended == {"environment": "done", "parity": "failed (1)", "masks": "cut after 2 s", "kernels": "no time left"}
    assert results["parity"]["log"] == ["it differs"] and results["masks"]["found"] == {"half": 1}
    child = Path("/proc", (tmp_path / "child").read_text(), "stat")
    deadline = time.monotonic() + 5
    while child.exists() and child.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "the child lives on"
    assert "masks: cut after 2 s" in capsys.readouterr().out


def test_all_ends_within_eight_minutes() -> None:
    parsed = make_parser().parse_args(["run", "out"])

    assert parsed.seconds + driver.SHORTEST <= 480 and parsed.steps == list(LIMITS)
    assert sum(LIMITS[step] for step in ("environment", "parity", "masks", "curves", "kernels")) < parsed.seconds


def make_wheel(path: Path, **files: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def test_what_is_carried_is_collected_and_unpacked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, site = tmp_path / "carried", tmp_path / "site"
    commands: list[list[str]] = []
    original = subprocess.run

    def run(words: list[str], **options: Any) -> Any:
        if words[0] == "git":
            # The tests may run in a tree that is not a repository, such as a source distribution.
            return subprocess.CompletedProcess(words, 0, "README.md\0tools/gone.py\0d2v_plugin/__init__.py\0")
        commands.append(words)
        if "download" in words:
            (folder / "other-1-py3-none-any.whl").touch()
            make_wheel(folder / "tbb-1-py3-none-any.whl", **{"tbb-1.data/data/lib/libtbb.so.12": "library", "tbb/a.py": ""})
        else:
            site.mkdir()
        return None

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(carried.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("LD_LIBRARY_PATH", "/usr/local/lib")
    assert main(["carry", str(folder)]) == 0
    environment = carried.install(folder, site)

    assert commands[0][-len(carried.PACKAGES) :] == list(carried.PACKAGES)
    assert commands[1][-1] == str(folder / "other-1-py3-none-any.whl"), "not the one whose library lies beside"
    assert (site / "libtbb.so.12").read_text() == "library" and "tracked files" in capsys.readouterr().out
    assert environment == {"PYTHONPATH": f"{site}:{ROOT}", "LD_LIBRARY_PATH": f"{site}:/usr/local/lib"}
    code = "from wandb import Run; from wandb.errors import CommError; assert issubclass(CommError, Exception)"
    assert original([sys.executable, "-S", "-c", code], env={"PYTHONPATH": str(site)}).returncode == 0
    entry = (site / "d2v_plugin-0.dist-info" / "entry_points.txt").read_text()
    assert entry.splitlines()[1] in (ROOT / "setup.py").read_text().replace('"', "")
    monkeypatch.setattr(carried, "LIMIT", 1 << 10)
    with pytest.raises(SystemExit, match="more than 0 MiB"):
        carried.collect(folder)
    with pytest.raises(SystemExit, match="no wheels"):
        carried.install(tmp_path, site)


def test_the_commands_of_the_page_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.benchmark.step.run", lambda arguments: None)
    monkeypatch.setattr("tools.benchmark.cost.run", lambda arguments: None)
    text = (ROOT / "recipes" / "gpu.md").read_text()
    lines = [line for block in text.split("```\n")[1::2] for line in block.splitlines() if line]
    assert len(lines) == 7

    for line in lines:
        program, _, module, *words = line.split()
        assert program == "python"
        if module == "tools.gpu_check":
            make_parser().parse_args(words)
        else:
            assert module == "tools.benchmark"
            benchmark(words)
