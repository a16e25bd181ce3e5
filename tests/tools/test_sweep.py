"""The sweep tool: a grid of settings and seeds, the median of the best."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tools.experiments import runner, sweep

ROOT = Path(__file__).parents[2]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Two recipes, two rates, three seeds."""
    common = "validation: {splits: [valid, other]}\nregime: {num_steps: 5, score_metric: matthews}\n"
    (tmp_path / "common.yaml").write_text(common)
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text("base: common.yaml\n")
    path = tmp_path / "sweep.yaml"
    path.write_text("recipes: [a.yaml, b.yaml]\ngrid: {optimizer.config.lr: [0.1, 0.2]}\nseeds: [1, 2, 3]\n")

    return path


@pytest.fixture
def fake_training(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """In place of training, writes what a run leaves behind; returns the list of runs to come."""
    runs: list[list[str]] = []

    def run_command(words: Sequence[str], log_path: Path) -> str | None:
        runs.append([*words])
        folder = log_path.parent
        recipe, setting, seed = folder.parts[-3:]
        if recipe == "b" and seed == "seed_3":
            return "it broke"
        (folder / "metrics" / "valid").mkdir(parents=True)
        # The best validation is the second; the mean of the splits counts.
        final = 0.1 * int(seed[-1]) + (0.3 if setting == "lr=0.2" else 0.0)
        for split, offset in (("valid", 0.1), ("other", -0.1)):
            lines = [{"Step": step, "Matthews Correlation": value + offset} for step, value in ((1, 0.0), (2, final), (3, 0.05))]
            (folder / "metrics" / "valid" / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "summary.json").write_text("{}")
        return None

    monkeypatch.setattr(runner, "run_command", run_command)

    return runs


def test_the_median_over_seeds_of_the_best_setting_is_reported(
    file: Path, fake_training: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    status = sweep.main([str(file), "--output", str(file.parent / "out")])

    assert status == 1 and "b, lr=0.2, seed 3 failed: it broke" in capsys.readouterr().err
    table = (file.parent / "out" / "table.md").read_text()
    assert "| | lr=0.1 | lr=0.2 | median of the best |" in table
    assert "| a | 20.0 (3) | **50.0 (3)** | 50.0 (3) |" in table
    assert "| b | 15.0 (2, 1 failed) | **45.0 (2, 1 failed)** | 45.0 (2, 1 failed) |" in table
    assert "| mean | | | 47.5 |" in table
    rows = json.loads((file.parent / "out" / "table.json").read_text())["rows"]
    assert rows[0]["best"] == "lr=0.2" and rows[0]["median"] == pytest.approx(0.5)
    assert rows[0]["settings"][0]["scores"] == pytest.approx({"1": 0.1, "2": 0.2, "3": 0.3})


def test_finished_runs_are_skipped_and_others_continued(file: Path, fake_training: list[Any]) -> None:
    words = [str(file), "--output", str(file.parent / "out"), "--config", "init.path=x"]
    sweep.main(words)
    assert len(fake_training) == 12
    assert fake_training[0][-3:] == ["common.seed=1", "optimizer.config.lr=0.1", "init.path=x"]
    fake_training.clear()

    sweep.main(words)

    assert [Path(run[5]).parts[-3:] for run in fake_training] == [("b", "lr=0.1", "seed_3"), ("b", "lr=0.2", "seed_3")]


def test_runs_with_other_settings_are_not_mixed(file: Path, fake_training: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    sweep.main([str(file), "--output", str(file.parent / "out")])

    with pytest.raises(SystemExit):
        sweep.main([str(file), "--output", str(file.parent / "out"), "--config", "regime.num_steps=9"])

    assert "seed_1 holds a run with other settings; delete it, or choose another --output." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("recipes: [a.yaml]\nseeds: [1]\n", "must name `recipes`, `grid` and `seeds`"),
        ("recipes: [c.yaml]\ngrid: {x: [1]}\nseeds: [1]\n", "there is no recipe"),
        ("recipes: [a.yaml]\ngrid: {x: 1}\nseeds: [1]\n", "`grid` must hold a list of values"),
        ("{", "cannot be read"),
    ],
)
def test_wrong_files_are_refused(file: Path, capsys: pytest.CaptureFixture[str], content: str, message: str) -> None:
    file.write_text(content)

    with pytest.raises(SystemExit):
        sweep.main([str(file), "--output", str(file.parent / "out")])

    assert message in capsys.readouterr().err


def test_the_papers_sweep_has_four_rates_and_five_seeds_for_eight_tasks() -> None:
    glue = sweep.read_sweep(ROOT / "recipes" / "text" / "sweeps" / "glue.yaml")

    assert len(glue.recipes) == 8 and len(list(glue.cells())) == 32 and len(glue.seeds) == 5
    for recipe in glue.recipes:
        merged = runner.merge_recipe(recipe)
        assert merged["regime"]["score_metric"] == merged["criterion"]["config"]["scores"][0]


def test_a_tiny_grid_really_trains(command: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run_here(words: Sequence[str], log_path: Path) -> str | None:
        outcome = command(*words)
        return None if outcome.status == 0 else outcome.err

    monkeypatch.setattr(runner, "run_command", run_here)
    regime = "regime: {num_steps: 2, publish_metrics_every_n_steps: 2, validate_every_n_steps: 2, score_metric: accuracy}\n"
    demo = f"base: {ROOT / 'recipes' / 'demo' / 'finetune_books.yaml'}\n{regime}"
    (tmp_path / "pairs.yaml").write_text(demo + "lr_scheduler: {config: {num_warmup_steps: 0}}\n")
    (tmp_path / "sweep.yaml").write_text("recipes: [pairs.yaml]\ngrid: {optimizer.config.lr: [1.0e-3, 1.0e-4]}\nseeds: [1]\n")

    assert sweep.main([str(tmp_path / "sweep.yaml"), "--output", str(tmp_path / "out")]) == 0

    (row,) = json.loads((tmp_path / "out" / "table.json").read_text())["rows"]
    assert [setting["name"] for setting in row["settings"]] == ["lr=0.001", "lr=0.0001"]
    assert all(0.3 < setting["scores"]["1"] < 0.7 for setting in row["settings"])
