"""`tools/convert_checkpoint.py export` keeps what computes features, and nothing else."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import d2v_plugin
from d2v_plugin.models.data2vec1.archs import ARCHS
from d2v_plugin.models.data2vec1.factory import create_model as create_data2vec1
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.weights.directory import ModelDirectory, write_directory
from d2v_plugin.weights.export import export_encoder

SCRIPT = Path(__file__).parents[2] / "tools" / "convert_checkpoint.py"


@pytest.mark.parametrize("weights", ["student", "teacher"])
@torch.no_grad()
def test_an_exported_encoder_computes_the_same(
    monkeypatch: pytest.MonkeyPatch, short_run: Any, tmp_path: Path, weights: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = short_run("digits"), tmp_path / "encoder"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "export", str(run), str(out), "--weights", weights])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert exit_.value.code == 0

    original, exported = d2v_plugin.load(run, weights=weights), d2v_plugin.load(out)
    images = torch.randn(2, 3, 32, 32)
    expected, found = original.extract_features(images), exported.extract_features(images)
    assert all(layer.equal(other) for layer, other in zip(found.layers, expected.layers, strict=True))
    assert isinstance(exported.config, Data2VecConfig) and exported.config.image is not None
    assert exported.config.image.decoder is None
    state = load_file(out / "model.safetensors")
    assert sorted(path.name for path in out.iterdir()) == ["complete.json", "config.json", "model.safetensors"]
    assert not [name for name in state if "decoder" in name or "criterion" in name]
    assert f"{sum(tensor.numel() for tensor in state.values()):,} parameters, image" in capsys.readouterr().out


def test_student_and_teacher_differ_after_an_update(short_run: Any) -> None:
    student, teacher = (export_encoder(short_run("digits"), weights).student for weights in ("student", "teacher"))

    assert student.keys() == teacher.keys() and any(not student[name].equal(teacher[name]) for name in student)


@torch.no_grad()
def test_a_model_of_data2vec_1_loses_its_head(tmp_path: Path) -> None:
    model = create_data2vec1(ARCHS["text_tiny"]()).eval()
    write_directory(tmp_path / "whole", ModelDirectory(config=model.config, student=model.state_dict()))

    write_directory(tmp_path / "encoder", export_encoder(tmp_path / "whole"))

    tokens = torch.randint(4, 50, (2, 9))
    exported = d2v_plugin.load(tmp_path / "encoder")
    assert exported.config.head_layers == 0 < model.config.head_layers  # type: ignore[union-attr]
    assert exported.extract_features(tokens).x.equal(model.extract_features(tokens).x)
