"""`tools/convert_checkpoint.py` moves models between Hugging Face and this package."""

from __future__ import annotations

import importlib.util
import json
import string
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    Data2VecAudioConfig,
    Data2VecAudioForCTC,
    Data2VecTextConfig,
    Data2VecTextForSequenceClassification,
    Data2VecTextModel,
    Data2VecVisionConfig,
    Data2VecVisionForImageClassification,
)

import d2v_plugin
from d2v_plugin.models.data2vec2.archs import text_tiny
from d2v_plugin.models.data2vec2.factory import create_model
from d2v_plugin.weights.directory import ModelDirectory, write_directory

ROOT = Path(__file__).parents[2]
SIZE: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
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


def write_classifier(folder: Path) -> list[str]:
    names = {str(digit): digit for digit in range(10)}
    labels = {"label2id": names, "id2label": {index: name for name, index in names.items()}}
    Data2VecVisionForImageClassification(Data2VecVisionConfig(**SIZE, image_size=32, patch_size=8, **labels)).save_pretrained(
        folder
    )
    return [f"dataset.config_overrides.path={ROOT / 'manifests' / 'digits'}"]


def write_transcriber(folder: Path) -> list[str]:
    symbols = ["<pad>", "|", *string.ascii_lowercase]
    config = Data2VecAudioConfig(
        **SIZE, conv_dim=[8] * 7, num_conv_pos_embedding_groups=4, vocab_size=len(symbols), pad_token_id=0
    )
    Data2VecAudioForCTC(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({symbol: index for index, symbol in enumerate(symbols)}))
    return [f"dataset.config_overrides.path={ROOT / 'manifests' / 'words'}"]


def write_reader(folder: Path) -> list[str]:
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *string.ascii_lowercase, "\u0120", "<mask>"]
    labels = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    config = Data2VecTextConfig(**SIZE, vocab_size=len(pieces), max_position_embeddings=40, **labels)
    Data2VecTextForSequenceClassification(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    data = folder.parent / "sentences"
    data.mkdir()
    (data / "valid.tsv").write_text("sentence\tlabel\na good day\tgood\nno\tbad\n")
    return [f"dataset.config_overrides.path={data}", "dataset.config_overrides.layout={texts: [sentence]}"]


@pytest.mark.parametrize(
    ("write", "score"),
    [(write_classifier, "accuracy"), (write_transcriber, "wer"), (write_reader, "accuracy")],
    ids=["pictures", "speech", "sentences"],
)
def test_a_fine_tuned_model_is_evaluated(write: Any, score: str, tmp_path: Path, script: ModuleType, command: Any) -> None:
    torch.manual_seed(0)
    settings = write(tmp_path / "source")
    assert script.main(["huggingface", str(tmp_path / "source"), str(tmp_path / "ours")]) == 0

    outcome = command("recipe", "evaluate", tmp_path / "out", "--config", f"checkpoint.path={tmp_path / 'ours'}", *settings)

    assert outcome.status == 0, outcome.err
    assert score in json.loads((tmp_path / "out" / "scores.json").read_text())["scores"]["valid"]


def test_a_head_that_nothing_here_has_is_refused_and_left_out(
    tmp_path: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    write_transcriber(tmp_path / "source")
    (tmp_path / "source" / "vocab.json").unlink()
    words = ["huggingface", str(tmp_path / "source"), str(tmp_path / "ours")]

    assert script.main(words) == 2
    assert "names the symbols of the head; --no-head converts what is below it" in capsys.readouterr().err
    assert script.main([*words, "--no-head"]) == 0
    assert d2v_plugin.load(tmp_path / "ours").config.dim == 16


def test_heads_go_there_and_come_back(tmp_path: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    write_classifier(tmp_path / "source")
    assert script.main(["huggingface", str(tmp_path / "source"), str(tmp_path / "ours")]) == 0
    assert "note: " in capsys.readouterr().err

    assert script.main(["to-huggingface", str(tmp_path / "ours"), str(tmp_path / "back")]) == 0
    assert "largest difference from our own model: blocks" in capsys.readouterr().out
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["architectures"] == ["Data2VecVisionForImageClassification"] and config["id2label"]["7"] == "7"
