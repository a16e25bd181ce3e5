"""Any checkpoint is probed, layer by layer, during pre-training and through `evaluate`, on one process or two."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from d2v_plugin.weights.directory import write_directory
from d2v_plugin.weights.export import export_encoder

PROBES = [
    "probing.probes=[{name: knn}, {name: linear}, {name: attentive, config: {num_epochs: 2}}]",
    "probing.train_split=probe",
    "probing.layers=all",
]


def test_every_layer_of_a_pre_trained_checkpoint_is_probed(command: Any, short_run: Any, tmp_path: Path) -> None:
    path = f"checkpoint.path={short_run('words')}"

    outcome = command("recipe", "evaluate", tmp_path / "out", "--config", path, *PROBES, "probing.baselines=true")

    assert outcome.status == 0, outcome.err
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())["scores"]
    assert list(scores) == ["probe", "random_init"]
    for found in scores.values():
        layers = ["", *(f"_layer{layer}" for layer in range(4))]
        assert set(found) == {f"probe_{name}{layer}" for name in ("knn", "linear", "attentive") for layer in layers}
        assert all(0.0 < score < 1.0 for score in found.values())
    for row in ("probe, layer 3", "probe, best layer", "random_init, layer 0"):
        assert any(line.startswith(row) for line in outcome.out.splitlines()), outcome.out


def test_a_converted_checkpoint_is_probed_as_the_run_is(command: Any, short_run: Any, tmp_path: Path) -> None:
    write_directory(tmp_path / "encoder", export_encoder(short_run("digits")))
    probes = ["probing.probes=[{name: knn}]", "probing.train_split=probe"]
    data = ["dataset.config_overrides.path=manifests/digits", "task.config.image.eval_resize=1.0"]

    results = []
    for name, path, settings in (("run", short_run("digits"), []), ("encoder", tmp_path / "encoder", data)):
        settings = [f"checkpoint.path={path}", *probes, *settings]
        outcome = command("recipe", "evaluate", tmp_path / f"out_{name}", "--config", *settings)
        assert outcome.status == 0, outcome.err
        results.append(json.loads((tmp_path / f"out_{name}" / "scores.json").read_text())["scores"])

    assert results[0] == results[1]


def test_layers_are_probed_during_pre_training(command: Any, tiny_recipe: Path, tmp_path: Path) -> None:
    probes = "probing.probes=[{name: knn}, {name: attentive, config: {num_epochs: 2, num_queries: 2}}]"
    steps = [f"regime.{name}=2" for name in ("num_steps", "validate_every_n_steps", "checkpoint_every_n_steps")]
    settings = [*PROBES[1:], probes, *steps, "regime.score_metric=probe_attentive", "regime.keep_best_n_checkpoints=1"]
    settings += ["probing.baselines=false", "pictures.enabled=false"]

    outcome = command("recipe", "train", "--config-file", tiny_recipe, tmp_path / "out", "--config", *settings)

    assert outcome.status == 0, outcome.err
    (line,) = (tmp_path / "out" / "metrics" / "valid" / "probe.jsonl").read_text().splitlines()
    found = json.loads(line)
    assert found["Probe Attentive Accuracy"] == max(found[f"probe_attentive_layer{layer}"] for layer in range(2))
    accuracies = json.loads((tmp_path / "out" / "summary.json").read_text())["accuracies"]
    assert accuracies["pre-trained"]["probe_knn_layer1"] == pytest.approx(found["probe_knn_layer1"], abs=1e-6)
    assert "pre-trained, best layer" in outcome.out


def test_layers_are_weighed_together_but_not_by_a_probe_that_cannot(command: Any, short_run: Any, tmp_path: Path) -> None:
    settings = [f"checkpoint.path={short_run('digits')}", "probing.train_split=probe", "probing.layers=weighted"]

    refused = command(
        "recipe", "evaluate", tmp_path / "out", "--config", *settings, "probing.probes=[{name: knn}, {name: linear}]"
    )
    outcome = command("recipe", "evaluate", tmp_path / "out", "--config", *settings, "probing.probes=[{name: linear}]")

    assert refused.status == 2 and "the probe knn learns no weights" in refused.err.splitlines()[-1]
    assert outcome.status == 0, outcome.err
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())["scores"]["probe"]
    weights = [scores[f"probe_linear_layer{layer}_weight"] for layer in range(3)]
    assert sum(weights) == pytest.approx(1.0, abs=1e-5) and len(scores) == 4 and "probe, weight of layer 2" in outcome.out
