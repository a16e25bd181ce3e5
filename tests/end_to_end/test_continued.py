"""A new run starts from the weights of another one, with schedules and teacher anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import d2v_plugin


def test_a_new_run_starts_from_the_weights_of_another(command: Any, tiny_recipe: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert command("recipe", "train", "--config-file", tiny_recipe, first).status == 0

    # A rate of zero leaves the student where it started; the teacher starts as its copy.
    settings = [f"init.path={first}", "optimizer.config.lr=0.0", "optimizer.config.weight_decay=0.0", "regime.num_steps=2"]
    outcome = command("recipe", "train", "--config-file", tiny_recipe, second, "--config", *settings)
    assert outcome.status == 0, outcome.err

    source = d2v_plugin.load(first).state_dict()
    for weights in ("student", "teacher"):
        state = d2v_plugin.load(second, weights=weights).state_dict()
        assert all(torch.allclose(state[name], value, atol=1e-6) for name, value in source.items()), weights


def test_weights_of_another_model_are_refused_in_one_line(command: Any, tiny_recipe: Path, tmp_path: Path) -> None:
    assert command("recipe", "train", "--config-file", tiny_recipe, tmp_path / "first").status == 0

    settings = [f"init.path={tmp_path / 'first'}", "model.config_overrides={dim: 64, depth: 2, num_heads: 2}"]
    outcome = command("recipe", "train", "--config-file", tiny_recipe, tmp_path / "second", "--config", *settings)

    assert outcome.status == 2
    assert "Traceback" not in outcome.err and "dim" in outcome.err
