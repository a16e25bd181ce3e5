"""The study's arithmetic and its report; the whole study takes hours."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import study  # noqa: E402
from study_flops import count_update_gflops  # noqa: E402
from study_report import compare_times, format_interval, format_ratios, time_to, write_report  # noqa: E402


def make_method(name: str, seconds: float, scores: list[list[float]]) -> dict[str, Any]:
    curves = {}
    for seed, ys in enumerate(scores):
        curve = [(100 * (i + 1), y) for i, y in enumerate(ys)]
        curves[str(seed)] = {"linear": curve, "knn": curve}
    fixed = {"setting": ["lr=1"], "search": {"lr=1": 0.5}, "fine_tuned": {"0": 0.9, "1": 0.8}, "gflops_per_update": 2.0}

    return {"method": name, "seconds_per_update": seconds, "curves": curves, **fixed}


PART = {
    "title": "toys",
    "published": {"MAE": 16.4},
    "fine_tuned_score": "accuracy",
    "from_scratch": {"0": 0.5, "1": 0.6},
    "methods": [
        make_method("data2vec 2.0", 0.5, [[0.6, 0.8, 0.9], [0.6, 0.8, 0.9]]),
        make_method("MAE", 0.2, [[0.2, 0.4, 0.7], [0.2, 0.4, 0.7]]),
    ],
}


def test_time_to_a_quality_lies_between_two_probes() -> None:
    curve = [(10.0, 0.5), (20.0, 0.7), (30.0, 0.6)]

    assert time_to(curve, 0.6) == pytest.approx(15.0)
    assert time_to(curve, 0.4) == 10.0
    assert time_to(curve, 0.8) is None


def test_ratios_say_how_much_sooner_and_which_way() -> None:
    ratios = compare_times(PART)

    # MAE ends with 0.7 after 300 updates of 0.2 s; ours has it after 150 updates of 0.5 s.
    assert ratios["MAE"]["ours"] == pytest.approx([60 / 75] * 2)
    assert ratios["MAE"]["theirs"] == [None, None]
    (line,) = format_ratios(PART, ratios)
    assert "70.0 %" in line and "in 2 of 2 runs, 0.8 to 0.8 times sooner" in line and "16.4" in line


def test_intervals_are_students() -> None:
    # n = 3, standard deviation 0.1: 4.30 * 0.1 / sqrt(3)
    assert format_interval([0.4, 0.5, 0.6]) == "50.0 ± 24.8"
    assert format_interval([0.5]) == "50.0" and format_interval([]) == "n/a"


def test_the_report_has_tables_and_plots(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    tmp_path.joinpath("images", "numbers.json").write_text(json.dumps(PART))
    write_report(tmp_path, command="c", machine="m", seconds=60)

    text = (tmp_path / "report.md").read_text()
    assert "| data2vec 2.0 | `lr=1` | 300 | 500 | 2.00 | 90.0 ± 0.0 |" in text and "from scratch" in text
    assert (tmp_path / "images.png").stat().st_size > 1000
    assert json.loads((tmp_path / "report.json").read_text())["parts"]["images"]["ratios"]["MAE"]["published"] == 16.4


def test_the_study_names_recipes_that_exist() -> None:
    from ruamel.yaml import YAML

    path = ROOT / "recipes" / "study" / "study.yaml"
    parts = list(study.read_parts(YAML(typ="safe", pure=True).load(path)["parts"], path.parent))

    assert [part.name for part in parts] == ["images", "speech", "text"]
    for part in parts:
        assert part.fine_tuning.is_file() and len({len(method.grid) for method in part.methods}) == 1
        assert all(method.recipe.is_file() for method in part.methods)


def test_flops_of_an_update_grow_with_the_batch(tiny_recipe: Path, tiny_recipe_text: str) -> None:
    small = count_update_gflops(tiny_recipe)
    tiny_recipe.write_text(tiny_recipe_text.replace("batch_size: 8", "batch_size: 16"))

    assert small > 0 and count_update_gflops(tiny_recipe) == pytest.approx(2 * small, rel=1e-6)
