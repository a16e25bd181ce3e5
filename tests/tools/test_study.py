"""The study's arithmetic and its report; the whole study takes hours."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from d2v_plugin.cli.main import main
from tools.experiments import runner, study, window
from tools.experiments.report import compare_costs, cost_of, format_interval, format_ratios, write_report

ROOT = Path(__file__).parents[2]
FLOOR = 0.3


def make_method(name: str, seconds: float, scores: list[list[float]]) -> dict[str, Any]:
    curves = {}
    for seed, ys in enumerate(scores):
        curve = [(100 * i, y) for i, y in enumerate([FLOOR, *ys])]
        curves[str(seed)] = {"linear": curve, "knn": curve}
    fixed = {
        "setting": ["lr=1"],
        "search": {"lr=1": 0.5},
        "fine_tuned": {"0": 0.9, "1": 0.8},
        "gflops_per_update": 2.0,
        "command": "fairseq2 recipe train",
    }

    return {"method": name, "seconds_per_update": seconds, "curves": curves, **fixed}


PART = {
    "title": "toys",
    "seconds": 60,
    "published": {"MAE": 16.4},
    "fine_tuned_title": "top-1",
    "hours": 0.5,
    "from_scratch": {"0": 0.5, "1": 0.6},
    "methods": [
        make_method("data2vec 2.0", 0.5, [[0.6, 0.8, 0.9], [0.6, 0.8, 0.9]]),
        make_method("MAE", 0.2, [[0.2, 0.4, 0.7], [0.2, 0.4, 0.7]]),
        make_method("noise", 0.2, [[0.3, 0.3, 0.2], [0.3, 0.3, 0.2]]),
    ],
}


def test_the_cost_of_a_quality_lies_between_two_probes() -> None:
    curve = [(0.0, 0.4), (10.0, 0.5), (20.0, 0.7), (30.0, 0.6)]

    assert cost_of(curve, 0.6) == pytest.approx(15.0)
    assert cost_of(curve, 0.45) == pytest.approx(5.0)
    assert cost_of(curve, 0.8) is None


def test_ratios_say_how_much_sooner_and_which_way() -> None:
    time, flops = (compare_costs(PART, key)["MAE"] for key in ("seconds_per_update", "gflops_per_update"))

    # MAE ends with 0.7 after 300 updates of 0.2 s; ours has it after 150 updates of 0.5 s.
    assert time["ours"] == pytest.approx([60 / 75] * 2) and flops["ours"] == pytest.approx([2.0] * 2)
    assert time["theirs"] == [None, None]
    (line,) = format_ratios(PART, {"time": {"MAE": time}, "flops": {"MAE": flops}})[2:]
    assert "| MAE | 70.0 | 2 of 2 runs | 0.8 to 0.8 times | 2.0 to 2.0 times | 0 of 2 runs | - | 16.4 times |" in line


def test_nobody_is_sooner_than_no_training() -> None:
    noise = compare_costs(PART, "seconds_per_update")["noise"]

    assert not noise["above_floor"]
    (line,) = format_ratios(PART, {"time": {"noise": noise}, "flops": {"noise": noise}})[2:]
    assert "no better than random initialisation" in line and "times" not in line

    forgetful = {**PART, "methods": [make_method("data2vec 2.0", 0.5, [[0.6, 0.2], [0.6, 0.2]]), *PART["methods"][1:2]]}
    mae = compare_costs(forgetful, "seconds_per_update")["MAE"]

    (line,) = format_ratios(forgetful, {"time": {"MAE": mae}, "flops": {"MAE": mae}})[2:]
    assert line.endswith("| 2 of 2 runs | - | 16.4 times |")


def test_intervals_are_students() -> None:
    # n = 3, standard deviation 0.1: 4.30 * 0.1 / sqrt(3)
    assert format_interval([0.4, 0.5, 0.6]) == "50.0 ± 24.8"
    assert format_interval([0.5]) == "50.0" and format_interval([]) == "n/a"


def test_the_report_has_tables_and_plots(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    tmp_path.joinpath("images", "numbers.json").write_text(json.dumps(PART))
    write_report(tmp_path, command="c", machine="m")

    text = (tmp_path / "report.md").read_text()
    assert "| data2vec 2.0 | `lr=1` | 300 | 500 | 2.00 | 90.0 ± 0.0 |" in text
    assert "| random initialisation | | 0 | | | 30.0 ± 0.0 | 30.0 ± 0.0 | 55.0 ± 63.5 |" in text
    assert "Cost: 0.5 hours" in text and "    fairseq2 recipe train" in text
    assert (tmp_path / "images.png").stat().st_size > 1000
    assert json.loads((tmp_path / "report.json").read_text())["parts"]["images"]["ratios"]["time"]["MAE"]["published"] == 16.4


def test_the_study_names_recipes_that_exist() -> None:
    from ruamel.yaml import YAML

    path = ROOT / "recipes" / "study" / "study.yaml"
    parts = list(study.read_parts(YAML(typ="safe", pure=True).load(path)["parts"], path.parent))

    assert [part.name for part in parts] == ["images", "speech", "text"]
    for part in parts:
        assert part.fine_tuning.is_file() and len({len(method.grid) for method in part.methods if not method.like}) == 1
        assert all(method.recipe.is_file() for method in part.methods)


def test_flops_of_an_update_grow_with_the_batch(tiny_recipe: Path, tiny_recipe_text: str) -> None:
    small = study.count_update_gflops(tiny_recipe)
    tiny_recipe.write_text(tiny_recipe_text.replace("batch_size: 8", "batch_size: 16"))

    assert small > 0 and study.count_update_gflops(tiny_recipe) == pytest.approx(2 * small, rel=1e-6)


STUDY = """
tuning_seed: 9
parts:
  images:
    title: digits
    seconds: 0.001
    seeds: [1]
    published: {MAE: 16.4}
    methods:
      data2vec 2.0: {recipe: tiny.yaml, grid: [optimizer.config.lr=1.0e-3, optimizer.config.lr=2.0e-3]}
      MAE: {recipe: mae.yaml, grid: [optimizer.config.lr=1.0e-3, optimizer.config.lr=2.0e-3]}
    fine_tuning: {recipe: fine_tuning.yaml, score: accuracy, title: top-1}
"""
MAE = """
base: tiny.yaml
criterion: {_del_: [config], name: mae, config: {decoder_dim: 32, decoder_depth: 1, decoder_num_heads: 2}}
"""
FINE_TUNING = f"""
base: {ROOT}/recipes/demo/finetune_digits.yaml
model: {{config_overrides: {{dim: 32, depth: 2, num_heads: 2}}}}
regime: {{num_steps: 2, publish_metrics_every_n_steps: 1, validate_every_n_steps: 2, checkpoint_every_n_steps: 2}}
lr_scheduler: {{config: {{num_warmup_steps: 0}}}}
pictures: {{enabled: false}}
common: {{torch: {{num_threads: 1}}}}
"""


class OneByOne:
    """An executor for recipes that run in this process: they want its main thread."""

    def __init__(self, jobs: int) -> None: ...

    def __enter__(self) -> OneByOne:
        return self

    def __exit__(self, *error: object) -> None: ...

    def submit(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*args))

        return future


def test_a_small_study_runs_and_repeating_it_runs_nothing(
    tiny_recipe: Path, few_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probing = "probing: {probes: [{name: linear}, {name: knn}], train_split: probe, baselines: false}\n"
    tiny_recipe.write_text(tiny_recipe.read_text() + probing + "lr_scheduler: {config: {num_warmup_steps: 1}}\n")
    data = f"dataset: {{config_overrides: {{path: {few_pictures}}}}}\n"
    tiny_recipe.write_text(tiny_recipe.read_text().replace(f"path: {ROOT}/manifests/digits", f"path: {few_pictures}"))
    for name, content in (("study", STUDY), ("mae", MAE), ("fine_tuning", FINE_TUNING + data)):
        (tmp_path / f"{name}.yaml").write_text(content)
    runs: list[str] = []

    def run_here(words: list[str], log_path: Path) -> None:
        runs.append(str(log_path.parent))
        main(words)

    monkeypatch.setattr(runner, "run_command", run_here)
    monkeypatch.setattr(study, "ThreadPoolExecutor", OneByOne)
    monkeypatch.setattr(study, "TIMED_UPDATES", 16)
    monkeypatch.setattr(study, "STEP_MULTIPLE", 2)
    words = [str(tmp_path / "study.yaml"), "--output", str(tmp_path / "out")]
    study.main(words)

    # Each method is timed, run with two settings and with the seed that is reported, fine-tuned; then what starts from scratch.
    assert len(runs) == 2 * (1 + 2 + 1 + 1) + 1
    part = json.loads((tmp_path / "out" / "report.json").read_text())["parts"]["images"]
    assert [method["method"] for method in part["methods"]] == ["data2vec 2.0", "MAE"]
    for method in part["methods"]:
        best = max(method["search"], key=lambda setting: method["search"][setting])
        assert method["search"][" ".join(method["setting"])] == method["search"][best]
        assert set(method["curves"]) == set(method["fine_tuned"]) == {"1"}
        # The floor and the end.
        assert [step for step, _ in method["curves"]["1"]["linear"]] == [0, 2]
        assert f"--config {' '.join(method['setting'])} common.seed=1" in method["command"]

    study.main(words)
    assert len(runs) == 11


def test_only_known_parts_can_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    with pytest.raises(SystemExit):
        study.main([str(tmp_path / "study.yaml"), "--output", str(tmp_path), "--only", "smells"])

    assert "the parts of" in capsys.readouterr().err


def note_time(folder: Path, seconds: float) -> float:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "timing.json").write_text(json.dumps({"seconds": seconds}))

    return seconds


def test_a_window_trains_and_the_study_goes_on_from_what_it_left(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_here(words: list[str], log_path: Path) -> None:
        log_path.touch()
        assert not main(words)

    file = tmp_path / "gpu.yaml"
    method = "{recipe: tiny.yaml, grid: [optimizer.config.lr=1.0e-3]}"
    fine_tuning = "{recipe: tiny.yaml, score: accuracy, title: top-1}"
    part = f"{{title: t, seconds: 1, seeds: [1], published: {{}}, methods: {{ours: {method}}}, fine_tuning: {fine_tuning}}}"
    file.write_text(f"tuning_seed: 0\nparts: {{images: {part}}}\n")
    monkeypatch.setattr(window, "STUDY", file)
    monkeypatch.setattr(window, "ROOT", tmp_path)
    monkeypatch.setattr(runner, "run_command", run_here)
    monkeypatch.setattr(study, "time_update", lambda method, plan: note_time(method.folder(plan) / "timing", 1.5))

    window.main(["carry", "images", f"{tmp_path}/data", "--megabytes", "0.1"])
    assert (tmp_path / "data" / "train.bin").stat().st_size == pytest.approx(1e5, rel=0.01)
    probes = "probing={probes: [{name: linear}, {name: knn}], train_split: probe, valid_split: valid}"
    words = ["train", "images", f"{tmp_path}/out", "--data", f"{tmp_path}/data", "--minutes", "0.5", "--config", probes]
    window.main(words)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("python -m tools.experiments.study gpu.yaml --output ")

    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "out" / "window_0.tar").rename(home / "window_0.tar")
    window.main(["unpack", str(home)])
    (run,) = (home / "runs" / "images" / "ours").glob("*_seed_1")
    assert (run / "encoder" / "model.safetensors").exists() and not (run / "checkpoints").exists()

    monkeypatch.setattr(runner, "run_command", pytest.fail)
    study.main([str(file), "--output", f"{home}/runs", "--seconds", line.split()[-1], "--no-fine-tuning"])
    numbers = json.loads((home / "runs" / "images" / "numbers.json").read_text())
    assert len(numbers["methods"][0]["curves"]["1"]["linear"]) > 1
