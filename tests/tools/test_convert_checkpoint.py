from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import d2v_plugin

SCRIPT = Path(__file__).parents[2] / "tools" / "convert_checkpoint.py"

FairseqCheckpoint = Callable[..., Path]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("convert_checkpoint", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    return module


def test_a_conversion_says_what_it_wrote(tmp_path: Path, fairseq_checkpoint: FairseqCheckpoint) -> None:
    command = [sys.executable, str(SCRIPT), "fairseq", str(fairseq_checkpoint("audio")), str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)

    assert result.returncode == 0
    files, table, last = (lines := result.stdout.splitlines())[:4], lines[4:-1], lines[-1]
    assert files == [
        str(tmp_path / "out" / name) for name in ("complete.json", "config.json", "model.safetensors", "teacher.safetensors")
    ]
    assert {line.split()[0] for line in table} == {"came"} and any(line.split()[2] == "teacher.blocks" for line in table)
    assert last == "82,520 parameters, audio"
    assert result.stderr == ""
    assert d2v_plugin.load(tmp_path / "out").config.dim == 36


def test_a_checkpoint_that_does_not_fit_is_refused_and_nothing_written(
    tmp_path: Path, script: ModuleType, fairseq_checkpoint: FairseqCheckpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fairseq_checkpoint("image", lambda content: content["model"].pop("blocks.0.norm1.weight"))
    before = sorted(tmp_path.iterdir())

    assert script.main(["fairseq", str(path), str(tmp_path / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fairseq2: error: ")
    assert "blocks.0.norm1.weight" in err
    assert len(err.splitlines()) <= 20
    assert sorted(tmp_path.iterdir()) == before


def test_the_options_reach_the_conversion(
    tmp_path: Path, script: ModuleType, fairseq_checkpoint: FairseqCheckpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fairseq", str(fairseq_checkpoint("audio")), str(tmp_path / "out")]

    assert script.main(words) == 0
    assert script.main(words) == 2
    assert "--force" in capsys.readouterr().err
    assert script.main([*words, "--force", "--teacher-weights", "--original-padding"]) == 0
    model = d2v_plugin.load(tmp_path / "out")
    teacher = d2v_plugin.load(tmp_path / "out", weights="teacher")
    assert model.config.original_padding
    assert model.blocks[0].attn.qkv.weight.equal(teacher.blocks[0].attn.qkv.weight)


def test_what_is_no_file_is_not_opened(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, kind in (("pipe", "pipe"), (".", "folder"), ("/dev/zero", "device")):
        assert script.main(["fairseq", str(tmp_path / name), str(tmp_path / "out")]) == 2
        assert f"is no file, but a {kind}." in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["fairseq"], ["tensorflow", "a", "b"], ["fairseq", "missing.pt", "out"]])
def test_mistakes_end_with_status_2(words: list[str], script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = script.main(words)
    except SystemExit as ex:
        status = ex.code

    assert status == 2
    assert "error: " in capsys.readouterr().err
