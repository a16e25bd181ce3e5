"""The ablation tool: runs recipes over seeds, skips what is done, and makes a table and a plot."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from torchvision.io import decode_png, read_file

from tools.experiments import ablate, runner

ROOT = Path(__file__).parents[2]
ABLATIONS = ROOT / "recipes" / "ablations"

# Folders whose rows differ in a number.
NUMBERS = {"views", "mask_ratio", "cls_loss", "target_layers", "target_context", "target_window", "loss", "masking"}

SHORT = ["regime.num_steps=1", "regime.publish_metrics_every_n_steps=1", "regime.checkpoint_every_n_steps=1"]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Three recipes in a group; the first two are equal but for their names."""
    folder = tmp_path / "views"
    folder.mkdir()
    for name, views in (("a", 2), ("b", 2), ("c", 3)):
        text = f"# {views} views ({name})\nbase: ../base.yaml\ncriterion: {{config: {{num_views: {views}}}}}\n"
        (folder / f"{name}.yaml").write_text(text)
    (tmp_path / "base.yaml").write_text("regime: {num_steps: 5}\n")

    return folder


@pytest.fixture
def fake_training(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """In place of training, writes what a run leaves behind; returns the list of runs to come."""
    runs: list[tuple[str, int]] = []

    def run_command(words: Sequence[str], log_path: Path) -> str | None:
        folder, recipe = log_path.parent, Path(words[words.index("--config-file") + 1])
        (seed,) = (int(word.removeprefix("common.seed=")) for word in words if word.startswith("common.seed="))
        runs.append((f"{recipe.parent.name}/{recipe.stem}", seed))
        if recipe.stem == "c" and seed == 2:
            return "it broke"
        accuracy = 0.5 + 0.1 * seed + (0.05 if recipe.stem == "c" else 0.0)
        accuracies = {"pre-trained": {"probe_linear": accuracy, "probe_knn": 0.5, "probe_knn_layer0": 0.4}}
        (folder / "summary.json").write_text(json.dumps({"accuracies": accuracies}))
        (folder / "metrics").mkdir()
        (folder / "metrics" / "train.jsonl").write_text('{"Wall Time": 1.0}\n{"Wall Time": 12.0}\n')
        return None

    monkeypatch.setattr(runner, "run_command", run_command)

    return runs


def test_the_table_has_mean_and_deviation_over_seeds(
    rows: Path, fake_training: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = ablate.main([str(rows), "--seeds", "1", "2", "--output", str(tmp_path / "out")])

    assert status == 1 and "views/c, seed 2 failed: it broke" in capsys.readouterr().err
    table = (tmp_path / "out" / "table.md").read_text()
    # Mean of 0.6 and 0.7, sample deviation 0.0707; no deviation of one run.
    assert "| 2 views (a) | 65.0 ± 7.1 | 50.0 ± 0.0 | 12 | 2 |" in table
    assert "| 3 views (c) | 65.0 | 50.0 | 12 | 1 (1 failed) |" in table
    assert "|  | linear | knn | seconds | seeds |" in table
    assert "| **views** |" in table and "python -m tools.experiments.ablate" in table and "cores, PyTorch" in table
    content = json.loads((tmp_path / "out" / "table.json").read_text())
    first = content["rows"][0]
    assert first["name"] == "views/a" and first["mean"]["probe_linear"] == pytest.approx(0.65)
    assert first["std"]["probe_linear"] == pytest.approx(0.1 / math.sqrt(2))
    assert first["accuracies"]["2"]["probe_linear"] == pytest.approx(0.7)
    assert content["rows"][2]["std"]["probe_linear"] is None


def test_rows_that_come_to_the_same_recipe_run_once(rows: Path, fake_training: list[Any]) -> None:
    ablate.main([str(rows), "--seeds", "1", "2", "--output", str(rows.parent / "out")])

    assert fake_training == [("views/a", 1), ("views/c", 1), ("views/a", 2), ("views/c", 2)]


def test_finished_runs_are_skipped(rows: Path, fake_training: list[Any]) -> None:
    words = [str(rows / "a.yaml"), str(rows / "c.yaml"), "--output", str(rows.parent / "out"), "--seeds"]
    ablate.main([*words, "1", "2"])
    fake_training.clear()

    ablate.main([*words, "1", "2", "3"])

    # The one that failed is tried again.
    assert fake_training == [("views/c", 2), ("views/a", 3), ("views/c", 3)]


def test_runs_with_other_settings_are_not_mixed(rows: Path, fake_training: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(rows / "a.yaml"), "--seeds", "1", "--output", str(rows.parent / "out")]
    ablate.main(words)

    for change in (["--config", "regime.num_steps=9"], ["--base", str(rows / "b.yaml")]):
        (rows / "b.yaml").write_text("regime: {num_steps: 6}\n")
        with pytest.raises(SystemExit):
            ablate.main([*words, *change])
        assert "seed_1 holds a run with other settings; delete it, or choose another --output." in capsys.readouterr().err


def test_another_base_takes_the_place_of_the_rows(rows: Path) -> None:
    other = rows.parent / "other.yaml"
    other.write_text("regime: {num_steps: 100}\ncommon: {seed: 4}\n")
    row = ablate.Row(rows / "c.yaml", base=other)

    path = row.prepare(rows.parent)

    assert row.recipe == {"regime": {"num_steps": 100}, "common": {"seed": 4}, "criterion": {"config": {"num_views": 3}}}
    assert ablate.Row(path).recipe == row.recipe
    with pytest.raises(Exception, match="has no `base` that --base could take the place of"):
        ablate.Row(other, base=other).own_changes()


def test_the_plot_is_a_picture_of_all_rows(rows: Path, fake_training: list[Any]) -> None:
    ablate.main([str(rows), "--seeds", "1", "3", "--output", str(rows.parent / "out")])

    picture = decode_png(read_file(str(rows.parent / "out" / "plot.png")))

    assert picture.size(1) > 200 and picture.size(2) > 600
    assert picture[:3].float().std() > 5


def test_without_matplotlib_there_is_a_table_and_a_hint(
    rows: Path, fake_training: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ablate, "find_spec", lambda name: None)

    assert ablate.main([str(rows), "--seeds", "1", "--output", str(rows.parent / "out")]) == 0

    assert "pip install matplotlib" in capsys.readouterr().err
    assert (rows.parent / "out" / "table.md").exists() and not (rows.parent / "out" / "plot.png").exists()


@pytest.mark.parametrize(("words", "message"), [(["nowhere"], "neither a recipe file nor a folder"), (["empty"], "neither")])
def test_wrong_rows_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    (tmp_path / "empty").mkdir()

    with pytest.raises(SystemExit):
        ablate.main([str(tmp_path / words[0]), "--output", str(tmp_path / "out")])

    assert message in capsys.readouterr().err


def test_a_row_really_trains_and_a_broken_one_tells_why(
    tiny_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probes = "probing: {probes: [{name: knn}], train_split: probe, baselines: false}\n"
    (tmp_path / "good.yaml").write_text(f"# good\nbase: {tiny_recipe}\n{probes}")
    (tmp_path / "bad.yaml").write_text(f"# bad\nbase: {tiny_recipe}\nregime: {{num_stepz: 1}}\n")

    words = [str(tmp_path / "good.yaml"), str(tmp_path / "bad.yaml"), "--seeds", "2", "--output", str(tmp_path / "out")]
    status = ablate.main([*words, "--config", *SHORT])

    assert status == 1
    good, bad = json.loads((tmp_path / "out" / "table.json").read_text())["rows"]
    assert 0 < good["accuracies"]["2"]["probe_knn"] <= 1 and good["seconds"]["2"] > 0 and not good["failures"]
    assert "`num_stepz` is not a known key" in bad["failures"]["2"] and not bad["accuracies"]


def select_rows() -> list[str]:
    """The rows of the papers' ablations; of those that differ in a number or a size, the first."""
    selected: list[Path] = []
    for folder in sorted(path for path in ABLATIONS.iterdir() if path.is_dir() and path.name != "objectives"):
        rows = sorted(folder.glob("*.yaml"))
        selected += rows[:1] if folder.name in NUMBERS else rows

    return [str(path.relative_to(ABLATIONS)) for path in selected]


@pytest.mark.parametrize("recipe", select_rows())
def test_the_rows_of_the_papers_ablations_train(command: Any, tmp_path: Path, recipe: str) -> None:
    settings = [*SHORT, "probing.probes=[]", "pictures.enabled=false", "common.torch.num_threads=1"]
    if runner.merge_recipe(ABLATIONS / recipe)["task"]["name"] == "image_pretraining":
        settings.append("task.config.batch_size=8")

    outcome = command("recipe", "train", "--config-file", ABLATIONS / recipe, tmp_path / "out", "--config", *settings)

    assert outcome.status == 0, outcome.err
