"""`tools/convert_checkpoint.py` moves models between Hugging Face and this package."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoModel, Data2VecTextConfig, Data2VecTextModel

import d2v_plugin
from d2v_plugin.models.data2vec2.archs import text_tiny
from d2v_plugin.models.data2vec2.factory import create_model
from d2v_plugin.weights.directory import ModelDirectory, write_directory

SCRIPT = Path(__file__).parents[2] / "tools" / "convert_checkpoint.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("convert_checkpoint", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    return module


@pytest.fixture
def source(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = Data2VecTextConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=40,
    )
    Data2VecTextModel(config).save_pretrained(tmp_path / "source")

    return tmp_path / "source"


@torch.no_grad()
def test_there_and_back(source: Path, tmp_path: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["huggingface", str(source), str(tmp_path / "ours")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(" parameters, text")
    assert script.main(["to-huggingface", str(tmp_path / "ours"), str(tmp_path / "back")]) == 0
    assert str(tmp_path / "back" / "model.safetensors") in capsys.readouterr().out

    tokens = torch.randint(4, 49, (2, 9))
    expected = AutoModel.from_pretrained(source).eval()(tokens).last_hidden_state
    torch.testing.assert_close(d2v_plugin.load(tmp_path / "ours").extract_features(tokens).x, expected, atol=1e-5, rtol=1e-5)
    back = AutoModel.from_pretrained(tmp_path / "back").eval()
    torch.testing.assert_close(back(tokens).last_hidden_state, expected, atol=1e-5, rtol=1e-5)


def test_data2vec_2_brings_its_code(tmp_path: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    model = create_model(text_tiny())
    write_directory(tmp_path / "ours", ModelDirectory(config=model.config, student=model.state_dict()))

    words = ["to-huggingface", str(tmp_path / "ours"), str(tmp_path / "out")]
    assert script.main(words) == 0
    assert "largest difference from our own model: blocks" in capsys.readouterr().out
    assert (tmp_path / "out" / "modeling_data2vec2.py").is_file()
    assert script.main(words) == 2 and script.main([*words, "--force"]) == 0


def test_nothing_is_overwritten(source: Path, tmp_path: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["huggingface", str(source), str(source)]) == 2
    assert script.main(["to-huggingface", str(tmp_path / "none"), str(source)]) == 2
    assert capsys.readouterr().err.count("exists already; choose another place") == 2


def test_a_folder_of_something_else_is_refused(tmp_path: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["huggingface", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "is not a folder of Hugging Face's `save_pretrained`" in capsys.readouterr().err
