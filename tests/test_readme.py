"""What the README tells people to type works; the line with the tests is CI's (.ci/run)."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHORT = [
    "regime.num_steps=1",
    "regime.publish_metrics_every_n_steps=1",
    "regime.validate_every_n_steps=null",
    "regime.checkpoint_every_n_steps=null",
    "probing.probes=[]",
    "lr_scheduler={name: passthrough, config: null}",
]


def read_commands() -> list[str]:
    """All lines of the fenced blocks without language, comments left out; indented ones are examples, not commands."""
    commands, language = [], None
    for line in README.splitlines():
        if line.startswith("```"):
            language = line[3:] if language is None else None
        elif language == "":
            commands.append(line.split("   #")[0].strip())

    return commands


COMMANDS = read_commands()
TRAIN = sorted(set(re.findall(r"(?:fairseq2|d2v_plugin) (recipe train .*)", "\n".join(COMMANDS))))


@pytest.fixture(autouse=True)
def in_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def run_tool(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", words)
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as ex:
        assert not ex.code, words


def test_every_command_is_known_here() -> None:
    """A new kind of command in the README needs a test of its own."""
    kinds = ("fairseq2 recipe", "torchrun --nproc-per-node 2 -m d2v_plugin", "python3 -m venv .venv", "python tools/")
    assert COMMANDS and all(command.startswith(kinds) for command in COMMANDS)
    assert len(TRAIN) >= 5


@pytest.mark.parametrize("words", TRAIN)
def test_training_commands_train(command: Any, tmp_path: Path, words: str) -> None:
    *flags, out = shlex.split(words)
    assert out.startswith("out/")

    outcome = command(*flags, tmp_path / "out", "--config", *SHORT)

    assert outcome.status == 0, outcome.err
    assert "Finished after 1 updates." in outcome.out


def test_list_lists(command: Any) -> None:
    assert any(line.startswith("fairseq2 recipe list") for line in COMMANDS)
    assert "image_pretraining" in command("recipe", "list").out


def test_manifest_commands_work_on_a_folder_of_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: Any) -> None:
    from torchvision.io import write_png

    (tmp_path / "pictures").mkdir()
    for i in range(200):
        write_png(torch.full((3, 8, 8), i, dtype=torch.uint8), str(tmp_path / "pictures" / f"{i}.png"))
    lines = [line for line in COMMANDS if line.startswith("python tools/make_manifest.py")]
    assert len(lines) == 2

    for line in lines:
        line = line.replace("PICTURES", str(tmp_path / "pictures")).replace("out/", f"{tmp_path}/out/")
        run_tool(monkeypatch, shlex.split(line)[1:])

    assert (tmp_path / "out" / "pictures" / "train.tsv").is_file() and (tmp_path / "out" / "pictures" / "valid.tsv").is_file()
    assert "train.tsv" in capfd.readouterr().out


def test_conversion_commands_convert(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fairseq_checkpoint: Any) -> None:
    from transformers import Data2VecAudioConfig, Data2VecAudioModel

    small = Data2VecAudioConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(16,) * 7,
        num_conv_pos_embedding_groups=2,
    )
    Data2VecAudioModel(small).save_pretrained(tmp_path / "data2vec-audio-base")
    shutil.copy(fairseq_checkpoint("audio"), tmp_path / "base_libri.pt")
    lines = [line for line in COMMANDS if line.startswith("python tools/convert_checkpoint.py")]
    assert len(lines) == 3

    for line in lines:
        tool, kind, source, out = shlex.split(line)[1:]
        run_tool(monkeypatch, [tool, kind, str(tmp_path / source), str(tmp_path / out)])

    assert (tmp_path / "out" / "base_libri" / "model.safetensors").is_file()
    Data2VecAudioModel.from_pretrained(tmp_path / "out" / "audio_hf")


def test_the_example_of_loading_loads(command: Any, tmp_path: Path, tiny_recipe: Path) -> None:
    found = re.search(r"<!-- code: load -->\n```python\n(.*?)```", README, re.DOTALL)
    assert found is not None
    assert command("recipe", "train", "--config-file", tiny_recipe, tmp_path / "digits", "--config", *SHORT).status == 0

    names: dict[str, Any] = {"images": torch.randn(2, 3, 32, 32)}
    exec(found[1].replace("out/digits", str(tmp_path / "digits")), names)

    assert names["features"].x.shape == (2, 64, 32)
