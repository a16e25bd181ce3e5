"""A stopped run continues bit-identically."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

SETTINGS = [
    *("regime.num_steps=8", "regime.checkpoint_every_n_steps=3", "regime.publish_metrics_every_n_steps=3"),
    *("regime.validate_every_n_steps=3", "probing.probes=[{name: knn}]", "probing.train_split=probe"),
]


def load_states(out: Path, step: int) -> dict[str, Any]:
    """All files of a checkpoint, flattened to name -> leaf."""
    folder = out / "checkpoints" / f"step_{step}"
    leaves: dict[str, Any] = {}

    def flatten(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                flatten(f"{name}.{key}", item)
        elif isinstance(value, list | tuple):
            for index, item in enumerate(value):
                flatten(f"{name}.{index}", item)
        else:
            leaves[name] = value

    for path in sorted(folder.rglob("*.pt")):
        flatten(str(path.relative_to(folder)), torch.load(path, weights_only=False))

    return leaves


def assert_identical(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        if "_base_wall_time" in name:  # the one thing that may differ
            continue
        same = torch.equal(actual[name], value) if isinstance(value, torch.Tensor) else actual[name] == value
        assert same, name


@pytest.mark.parametrize("criterion", ["data2vec2"])
def test_a_resumed_run_ends_with_identical_states(command: Any, tiny_recipe: Path, tmp_path: Path, criterion: str) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    words = ("recipe", "train", "--config-file", tiny_recipe)
    assert command(*words, whole, "--config", *SETTINGS).status == 0
    # What a run that died between updates 3 and 6 leaves behind.
    shutil.copytree(whole / "checkpoints" / "step_3", resumed / "checkpoints" / "step_3")

    outcome = command(*words, resumed, "--config", *SETTINGS)

    assert outcome.status == 0 and "Resuming from step 3" in " ".join(outcome.err.split())
    expected = load_states(whole, 8)
    assert_identical(load_states(resumed, 8), expected)
    kinds = {name.split("/")[0] for name in expected}
    assert kinds == {"trainer", "model", "optimizer", "data_reader"}
    assert any(".teacher." in name for name in expected) and any("exp_avg_sq" in name for name in expected)

    # The comparison can fail: update 6 is not update 8.
    with pytest.raises(AssertionError):
        assert_identical(load_states(whole, 6), expected)


def test_the_teacher_follows_the_student_at_every_update(command: Any, tiny_recipe: Path, tmp_path: Path) -> None:
    intervals = ["regime.checkpoint_every_n_steps=1", "regime.publish_metrics_every_n_steps=1"]
    settings = [*intervals, "criterion.config.ema.anneal_steps=3"]

    command("recipe", "train", "--config-file", tiny_recipe, tmp_path / "out", "--config", *settings)

    before, after = (load_states(tmp_path / "out", step) for step in (2, 3))
    pairs = [
        (name, name.replace("criterion.teacher.", ""))
        for name in after
        if name.startswith("model/") and "criterion.teacher." in name and name.replace("criterion.teacher.", "") in after
    ]
    assert pairs
    for teacher, student in pairs:
        # The decay of update 3 is the first that is 0.99 here, and the checkpoint of update 3 holds the average of update 3.
        expected = before[teacher].lerp(after[student], 1 - 0.99)
        torch.testing.assert_close(after[teacher], expected, rtol=0, atol=1e-7, msg=teacher)


def test_another_seed_gives_another_run(command: Any, tiny_recipe: Path, tmp_path: Path) -> None:
    words = ("recipe", "train", "--config-file", tiny_recipe)
    for name, seed in (("a", 1), ("b", 1), ("c", 3)):
        command(*words, tmp_path / name, "--config", f"common.seed={seed}")

    a, b, c = (load_states(tmp_path / name, 4) for name in "abc")
    assert_identical(a, b)
    with pytest.raises(AssertionError):
        assert_identical(a, c)
