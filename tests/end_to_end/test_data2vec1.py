"""data2vec 1.0 trains through the command line, also in two phases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

MODEL = """
  family: data2vec1
  arch: vision_tiny
  config_overrides: {dim: 32, ffn_dim: 64, depth: 2, num_heads: 2, attention_dropout: 0.1, drop_path: 0.1}
"""
CRITERION = """
  name: data2vec1
  config:
    masking: {name: beit_block, config: {num_patches: 38, min_block: 4}}
    ema: {start: 0.9, end: 0.99, anneal_steps: 10}
    teacher_scope: all
    target_feature: block
    targets: {num_layers: 2, instance_norm_layers: false, layer_norm: true}
    loss_beta: 2.0
"""


@pytest.fixture
def recipe(tiny_recipe_text: str, tmp_path: Path) -> Path:
    head, rest = tiny_recipe_text.split("\nmodel:")
    tail = "optimizer:" + rest.split("\noptimizer:")[1]
    path = tmp_path / "data2vec1.yaml"
    path.write_text(f"{head}\nmodel:{MODEL}criterion:{CRITERION}{tail}")

    return path


def read_weights(folder: Path) -> dict[str, Tensor]:
    (file,) = folder.rglob("*.pt")
    state: dict[str, Tensor] = torch.load(file, weights_only=True)

    return state


def test_a_run_and_a_second_phase_from_its_weights(command: Any, recipe: Path, tmp_path: Path) -> None:
    first = command("recipe", "train", "--config-file", recipe, tmp_path / "first")
    assert first.status == 0, first.err
    before = read_weights(tmp_path / "first" / "checkpoints" / "step_4" / "model")
    assert any(name.startswith("criterion.teacher.") for name in before)

    settings = [f"init.path={tmp_path}/first", "optimizer.config.lr=0.0", "regime.num_steps=2"]
    second = command("recipe", "train", "--config-file", recipe, tmp_path / "second", "--config", *settings)

    assert second.status == 0, second.err
    after = read_weights(tmp_path / "second" / "checkpoints" / "step_2" / "model")
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        # The teacher starts from the student, and a rate of zero changes nothing.
        torch.testing.assert_close(tensor, before[name.removeprefix("criterion.teacher.")])


@pytest.mark.parametrize(
    "setting",
    ["trainer.activation_checkpointing.mode=layerwise", "task.config.max_batch_size=4", "trainer.mixed_precision.mode=auto"],
)
def test_trainer_settings_work(setting: str, command: Any, recipe: Path, tmp_path: Path) -> None:
    outcome = command("recipe", "train", "--config-file", recipe, tmp_path / "out", "--config", setting, "regime.num_steps=2")

    assert outcome.status == 0, outcome.err
