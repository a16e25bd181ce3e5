"""The examples of recipes/extending.md work as they stand there: each is saved as its file, and its commands are run."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from d2v_plugin import plugin

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "recipes" / "extending.md").read_text(encoding="utf-8")
EXAMPLES: dict[str, tuple[str, list[str]]] = {
    name: (code, [line for line in commands.splitlines() if line])
    for name, code, commands in re.findall(r"<!-- file: (\w+\.py) -->\n```python\n(.*?)```\n\n```\n(.*?)```", PAGE, re.DOTALL)
}
SHORT = [
    "regime.num_steps=4",
    "regime.publish_metrics_every_n_steps=1",
    "regime.validate_every_n_steps=4",
    "lr_scheduler={name: passthrough, config: null}",
    "pictures.enabled=false",
    "common.torch.num_threads=1",
]


@pytest.fixture
def write_example(tmp_path: Path) -> Any:
    """Saves an example as its file."""

    def write(name: str) -> Path:
        path = tmp_path / name
        path.write_text(EXAMPLES[name][0], encoding="utf-8")

        return path

    return write


@pytest.fixture
def run(command: Any, write_example: Any, short_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command of the page, four updates of it, in a folder of the test's own; returns what it wrote."""
    monkeypatch.chdir(tmp_path)

    def run_line(line: str) -> Path:
        write_example(re.search(r"--extension (\S+)", line)[1])  # type: ignore[index]
        line = line.replace("recipes/", f"{ROOT}/recipes/").replace("manifests/", f"{ROOT}/manifests/")
        words = [word.replace("=out/digits", f"={short_run('digits')}") for word in shlex.split(line)[1:]]
        outcome = command(*words, *(SHORT if words[1] == "train" else []))
        assert outcome.status == 0, outcome.err

        return tmp_path / next(word for word in words if word.startswith("out/"))

    return run_line


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_kind_of_extension_has_an_example() -> None:
    assert list(EXAMPLES) == ["colors.py", "half_planes.py", "arrays.py", "centroids.py", "recall.py", "slim.py"]
    assert PAGE.count("```python") == len(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_import_from_the_public_module_alone(name: str) -> None:
    imports = [node for node in ast.walk(ast.parse(EXAMPLES[name][0])) if isinstance(node, ast.ImportFrom | ast.Import)]
    modules = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports}

    assert {module for module in modules if module and module.startswith(("d2v_plugin", "fairseq2"))} == {"d2v_plugin.plugin"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_short(name: str) -> None:
    code = EXAMPLES[name][0]

    assert len([line for line in code.splitlines() if line.strip()]) < 65
    assert max(len(line) for line in code.splitlines()) <= 130


def test_the_public_module_promises_what_it_has() -> None:
    """Nothing is imported there that is not handed out, but for what its own functions need."""
    own_needs = {"AnyConfig", "Callable", "ConfigRegistrar", "DependencyContainer", "MetricDescriptor", "format_as_float"}
    own_needs |= {"Any", "annotations", "fairseq2", "family_of"}

    names = {name for name in vars(plugin) if not name.startswith("_")}

    assert plugin.__all__ == sorted(names - own_needs)


def test_a_criterion_trains(run: Any, tmp_path: Path) -> None:
    out = run(EXAMPLES["colors.py"][1][0])

    assert all("deviation" in line for line in read_lines(out / "metrics" / "train.jsonl"))


def test_the_loss_of_the_criterion_falls(command: Any, write_example: Any, tiny_recipe: Path, tmp_path: Path) -> None:
    settings = ["criterion={name: colors}", "regime.num_steps=30", "regime.publish_metrics_every_n_steps=10"]

    words = ("recipe", "train", "--extension", write_example("colors.py"), "--config-file", tiny_recipe, tmp_path / "out")
    outcome = command(*words, "--config", *settings)

    assert outcome.status == 0, outcome.err
    lines = read_lines(tmp_path / "out" / "metrics" / "train.jsonl")
    assert lines[-1]["Loss"] < 0.8 * lines[0]["Loss"]


def test_extensions_are_listed_by_name(command: Any, write_example: Any) -> None:
    out = command("recipe", "list", "--extension", write_example("colors.py")).out

    assert "colors" in out.split("criteria:")[1].split("\n\n")[0].split()


def test_a_mask_sampler_draws_the_masks(run: Any) -> None:
    training, inspection = EXAMPLES["half_planes.py"][1]

    lines = read_lines(run(training) / "metrics" / "train.jsonl")
    pictures = run(inspection)

    assert lines[-1]["Masked Fraction"] == pytest.approx(int(0.7 * 64) / 64)
    assert list(pictures.rglob("*.png"))


def test_impossible_settings_are_named(command: Any, write_example: Any, tiny_recipe: Path, tmp_path: Path) -> None:
    words = ("recipe", "train", "--extension", write_example("half_planes.py"), "--config-file", tiny_recipe, tmp_path / "out")

    outcome = command(*words, "--config", "criterion.config.masking={name: half_plane, config: {ratio: 1.5}}")

    assert outcome.status == 2
    assert "`ratio` must be between 0 and 1, but is 1.5." in outcome.err.splitlines()[-1]


def test_a_task_reads_its_dataset(run: Any, tmp_path: Path) -> None:
    (tmp_path / "ARRAYS").mkdir()
    for seed, split in enumerate(("train", "probe", "valid")):
        generator = np.random.default_rng(seed)
        labels = np.arange(60) % 3
        images = generator.normal(size=(60, 3, 32, 32)).astype(np.float32) + labels[:, None, None, None].astype(np.float32)
        np.savez(tmp_path / "ARRAYS" / f"{split}.npz", images=images, labels=labels)

    out = run(EXAMPLES["arrays.py"][1][0])

    assert len(read_lines(out / "metrics" / "train.jsonl")) == 4
    assert read_lines(out / "metrics" / "valid" / "probe.jsonl")[-1]["Probe Linear Accuracy"] > 0.5


def test_a_probe_measures_a_run_and_a_checkpoint(run: Any) -> None:
    training, evaluation = EXAMPLES["centroids.py"][1]

    assert read_lines(run(training) / "metrics" / "valid" / "probe.jsonl")[-1]["Probe Centroid Accuracy"] > 0.15
    assert "probe_centroid" in (run(evaluation) / "scores.json").read_text()


def test_a_metric_chooses_the_best_checkpoint(run: Any) -> None:
    training, prediction = EXAMPLES["recall.py"][1]
    out = run(training)

    (line,) = read_lines(out / "metrics" / "valid" / "valid.jsonl")
    score = float(next((out / "checkpoints" / "scores").iterdir()).read_text())
    assert 0 < line["Mean Recall"] < 1 and score == pytest.approx(line["Mean Recall"], abs=1e-4)

    found = read_lines(run(prediction) / "predictions.jsonl")
    assert len(found) == 200 and len(found[0]["classes"]) == 5


@torch.no_grad()
def test_a_model_of_an_arch_is_loaded_without_the_extension(run: Any) -> None:
    import d2v_plugin

    model = d2v_plugin.load(run(EXAMPLES["slim.py"][1][0]))

    assert model.extract_features(torch.randn(2, 3, 32, 32)).x.shape == (2, 64, 64)


def test_a_name_of_an_arch_is_not_taken_twice(command: Any, write_example: Any, tmp_path: Path) -> None:
    path = write_example("slim.py")
    path.write_text(path.read_text().replace('"image_slim"', '"image_base"'))

    outcome = command("recipe", "list", "--extension", path)

    assert outcome.status == 2 and "arch `image_base` of the family `data2vec` is already registered" in outcome.err
