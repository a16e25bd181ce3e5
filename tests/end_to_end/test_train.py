"""A run trains, reports, and says at its end what it reached."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from d2v_plugin.verbs.train.summary import Summary, format_summary

EXTENSION = Path(__file__).with_name("toy_extension.py")

PROBES = ["probing.probes=[{name: knn},{name: linear}]", "probing.train_split=probe", "regime.validate_every_n_steps=2"]


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def finished(command: Any, tiny_recipe: Path, tmp_path: Path) -> Any:
    return command("recipe", "train", "--config-file", tiny_recipe, tmp_path / "out", "--config", *PROBES)


def test_a_run_leaves_checkpoints_metrics_and_a_summary(finished: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"

    assert finished.status == 0, finished.err
    assert (out / "checkpoints" / "step_4" / "model").is_dir()
    assert len(list((out / "tb").rglob("events*"))) == 1
    train = read_lines(out / "metrics" / "train.jsonl")
    assert [line["Step"] for line in train] == [2, 4]
    for name in (
        *("Loss", "Regression Loss", "CLS Loss", "Target Deviation", "Prediction Deviation", "Masked Fraction"),
        *("EMA Decay", "Gradient Norm", "Samples per Second"),
    ):
        assert math.isfinite(train[0][name]) and train[0][name] > 0, name
    valid = read_lines(out / "metrics" / "valid" / "probe.jsonl")
    assert [line["Step"] for line in valid] == [2, 4]
    assert 0 < valid[0]["Probe k-NN Accuracy"] <= 1 and 0 < valid[0]["Probe Linear Accuracy"] <= 1


def test_the_summary_compares_with_a_random_encoder_and_raw_pixels(finished: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = json.loads((out / "summary.json").read_text())

    assert summary["num_updates"] == 4
    assert list(summary["accuracies"]) == ["pre-trained", "random init", "raw pixels"]
    last = read_lines(out / "metrics" / "valid" / "probe.jsonl")[-1]
    assert summary["accuracies"]["pre-trained"]["probe_linear"] == pytest.approx(last["Probe Linear Accuracy"])
    assert summary["accuracies"]["raw pixels"]["probe_linear"] > 0.85
    assert "weight decay" in finished.out  # the table of the optimizer's layers
    assert finished.out.endswith(format_summary(Summary(**summary)) + "\n")
    assert f"tensorboard --logdir {out / 'tb'}" in finished.out


def test_repeating_a_finished_run_says_the_same_again(finished: Any, command: Any, tiny_recipe: Path, tmp_path: Path) -> None:
    again = command("recipe", "train", "--config-file", tiny_recipe, tmp_path / "out", "--config", *PROBES)

    assert again.status == 0 and again.out == finished.out


def test_baselines_can_be_left_out(command: Any, tiny_recipe: Path, tmp_path: Path) -> None:
    command("recipe", "train", "--config-file", tiny_recipe, tmp_path / "out", "--config", *PROBES, "probing.baselines=false")

    assert list(json.loads((tmp_path / "out" / "summary.json").read_text())["accuracies"]) == ["pre-trained"]


def test_a_run_without_probes_says_where_everything_is(command: Any, tiny_recipe: Path, tmp_path: Path) -> None:
    outcome = command("recipe", "train", "--config-file", tiny_recipe, tmp_path / "out")

    assert "accuracy" not in outcome.out and str(tmp_path / "out" / "checkpoints") in outcome.out


def test_a_loss_that_is_not_finite_ends_the_run_with_its_step(command: Any, tiny_recipe: Path, tmp_path: Path) -> None:
    settings = ["optimizer.config.lr=1e30", "regime.num_steps=6"]

    outcome = command("recipe", "train", "--config-file", tiny_recipe, tmp_path / "out", "--config", *settings)

    assert outcome.status == 2 and "Traceback" not in outcome.err
    assert "at step" in outcome.err.splitlines()[-1] and "`optimizer.config.lr`" in outcome.err.splitlines()[-1]


def test_an_accumulated_update_equals_one_of_the_whole_batch(command: Any, tiny_recipe: Path, tmp_path: Path) -> None:
    for name, size in (("whole", "null"), ("halves", "4")):
        settings = [f"task.config.max_batch_size={size}", "regime.publish_metrics_every_n_steps=1", "regime.num_steps=1"]
        command("recipe", "train", "--config-file", tiny_recipe, tmp_path / name, "--config", *settings)

    whole, halves = (read_lines(tmp_path / name / "metrics" / "train.jsonl")[0] for name in ("whole", "halves"))
    assert halves["Gradient Norm"] == pytest.approx(whole["Gradient Norm"], rel=1e-5)
    assert halves["Loss"] == pytest.approx(whole["Loss"], rel=1e-5)


def test_a_criterion_of_an_extension_file_trains_from_the_command_line(tiny_recipe: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe.read_text().split("criterion:")[0] + "criterion: {name: brightness, config: {weight: 2.0}}\n"
    tiny_recipe.write_text(recipe + "regime: {num_steps: 3, publish_metrics_every_n_steps: 1}\n")
    words = ["recipe", "train", "--extension", EXTENSION, "--config-file", tiny_recipe, tmp_path / "out"]

    result = subprocess.run(
        [sys.executable, "-m", "d2v_plugin", *words],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
    )

    assert result.returncode == 0, result.stderr
    lines = read_lines(tmp_path / "out" / "metrics" / "train.jsonl")
    assert len(lines) == 3 and all("brightness" in line for line in lines)
    assert lines[-1]["Loss"] < lines[0]["Loss"]


def test_a_recipe_switches_between_criteria_by_name(command: Any, tiny_recipe: Path, tmp_path: Path) -> None:
    words = ("recipe", "train", "--extension", EXTENSION, "--config-file", tiny_recipe, "--dump-config")

    outcome = command(*words, "--config", "criterion={name: brightness}")

    assert outcome.status == 0, outcome.err
    assert "name: brightness\n  config:\n    weight: 1.0\n" in outcome.out
