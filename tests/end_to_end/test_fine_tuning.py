"""Digits: pre-trained, fine-tuned and evaluated by the recipes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from d2v_plugin.cli.main import main
from d2v_plugin.weights.sources import find_source

ROOT = Path(__file__).parents[2]

QUICK = [
    "task.config.image.size=16",
    "pictures.enabled=false",
    "common.torch.num_threads=1",
    "common.metric_recorders.tensorboard.enabled=false",
]
PRETRAINING = [
    *QUICK,
    "model.config_overrides={image: {image_size: 16}, depth: 2}",
    "criterion.config.num_views=4",
    "criterion.config.masking={name: inverse_block, config: {ratio: 0.7, block_size: 2}}",
    "lr_scheduler.config.num_warmup_steps=20",
    "probing.probes=[]",
    "regime.num_steps=160",
    "regime.validate_every_n_steps=null",
    "regime.checkpoint_every_n_steps=null",
]
FINE_TUNING = [
    *QUICK,
    "model.config_overrides={image: {image_size: 16, decoder: null}, depth: 2, drop_path: [0.0, 0.0]}",
    "task.config.split=train",
    "task.config.batch_size=64",
    "criterion.config.label_smoothing=0.0",
    "optimizer.config.layer_decay=1.0",
    "optimizer.config.lr=0.004",
    "regime.num_steps=280",
    "regime.validate_every_n_steps=140",
    "regime.checkpoint_every_n_steps=140",
    "regime.publish_metrics_every_n_steps=140",
    "regime.keep_last_n_checkpoints=2",
]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a short pre-training run."""
    out = tmp_path_factory.mktemp("digits") / "pretrained"
    recipe = ROOT / "recipes" / "demo" / "digits.yaml"
    main(["recipe", "train", "--config-file", str(recipe), str(out), "--config", *PRETRAINING])

    return out


@pytest.fixture(scope="module")
def tuned(pretrained: Path) -> Path:
    """The output of a run that fine-tunes it."""
    out = pretrained.parent / "tuned"
    recipe = ROOT / "recipes" / "demo" / "finetune_digits.yaml"
    main(["recipe", "train", "--config-file", str(recipe), str(out), "--config", f"init.path={pretrained}", *FINE_TUNING])

    return out


def read_scores(out: Path) -> dict[str, dict[str, float]]:
    return json.loads((out / "scores.json").read_text())["scores"]  # type: ignore[no-any-return]


def test_digits_are_told_apart_after_fine_tuning(tuned: Path) -> None:
    summary = json.loads((tuned / "summary.json").read_text())

    assert summary["scores"]["valid, last (update 280)"]["accuracy"] > 0.95
    assert summary["scores"]["valid, best (update 280)"]["top5_accuracy"] > 0.99


def test_a_checkpoint_folder_alone_is_evaluated(command: Any, tuned: Path, tmp_path: Path) -> None:
    expected = json.loads((tuned / "metrics" / "valid" / "valid.jsonl").read_text().splitlines()[-1])
    moved = tmp_path / "moved"
    shutil.copytree(tuned / "checkpoints", moved)

    found = []
    for i, path in enumerate((tuned, moved, moved / "step_280")):
        outcome = command("recipe", "evaluate", tmp_path / f"{i}", "--config", f"checkpoint.path={path}")
        assert outcome.status == 0, outcome.err
        found.append(read_scores(tmp_path / f"{i}"))
        assert (tmp_path / f"{i}/predictions/valid.tsv").read_text() == (tuned / "predictions" / "valid.tsv").read_text()

    assert found[0] == found[1] == found[2]
    assert found[0]["valid"]["accuracy"] == pytest.approx(expected["Accuracy"], abs=1e-6)
    assert found[0]["valid"]["loss"] == pytest.approx(expected["Loss"], abs=1e-6)
    table = outcome.out[outcome.out.index("accuracy  top5_accuracy") :].splitlines()
    assert table[1].split()[:2] == ["valid", f"{found[0]['valid']['accuracy']:.4f}"]


def test_the_mean_of_the_last_checkpoints_is_evaluated(command: Any, tuned: Path, tmp_path: Path) -> None:
    settings = [f"checkpoint.path={tuned}", "checkpoint.average=2"]
    outcome = command("recipe", "evaluate", tmp_path / "mean", "--config", *settings)

    assert outcome.status == 0, outcome.err
    scores = json.loads((tmp_path / "mean" / "scores.json").read_text())
    assert scores["checkpoint"] == f"{tuned}/checkpoints/step_280@average=2" and scores["scores"]["valid"]["accuracy"] > 0.9
    # By hand, from the two checkpoints of the run.
    source = find_source(f"{tuned}@average=2")
    parts = [find_source(tuned / "checkpoints" / f"step_{number}").read_all() for number in (140, 280)]
    mean = source.read_all()
    assert any(key.startswith("criterion.") for key in mean) and mean.keys() == parts[0].keys()
    for key, tensor in mean.items():
        torch.testing.assert_close(tensor, (parts[0][key] + parts[1][key]) / 2, rtol=1e-6, atol=1e-7)
    assert not all(torch.equal(mean[key], parts[1][key]) for key in mean)

    for settings, message in (
        (["checkpoint.average=3"], "holds 2 complete checkpoints up to step_280, but the mean of 3 is wanted"),
        (["checkpoint.average=2", "checkpoint.best=true"], "set one of them"),
        (["checkpoint.average=0"], "`checkpoint`: `average` must be at least 1, but is 0"),
    ):
        refused = command("recipe", "evaluate", tmp_path / "no", "--config", f"checkpoint.path={tuned}", *settings)
        assert refused.status == 2 and message in refused.err.splitlines()[-1], refused.err


def test_predictions_stand_beside_references(tuned: Path) -> None:
    header, *rows = (tuned / "predictions" / "valid.tsv").read_text().splitlines()
    labels = [line.split("\t")[1] for line in (ROOT / "manifests" / "digits" / "valid.tsv").read_text().splitlines()[2:]]

    assert header == "row\tprediction\treference\tconfidence\tpath" and len(rows) == 597
    assert [row.split("\t")[2] for row in rows] == labels
    right = sum(row.split("\t")[1] == row.split("\t")[2] for row in rows)
    accuracy = json.loads((tuned / "summary.json").read_text())["scores"]["valid, last (update 280)"]["accuracy"]
    assert right / 597 == pytest.approx(accuracy, abs=1e-6)


def test_pictures_are_classified_with_the_accuracy_that_the_run_was_scored_with(
    command: Any, tuned: Path, tmp_path: Path
) -> None:
    settings = [f"checkpoint.path={tuned}", "inputs=manifests/digits/valid.tsv"]
    outcome = command("recipe", "predict", tmp_path / "out", "--config", *settings)
    assert outcome.status == 0, outcome.err

    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    labels = [line.split("\t")[1] for line in (ROOT / "manifests" / "digits" / "valid.tsv").read_text().splitlines()[2:]]
    scores = json.loads((tuned / "summary.json").read_text())["scores"]["valid, last (update 280)"]
    found = [[each["label"] for each in line["classes"]] for line in lines]
    top1 = sum(label == best[0] for best, label in zip(found, labels, strict=True)) / 597
    assert top1 == pytest.approx(scores["accuracy"], abs=1e-6)
    assert sum(label in best for best, label in zip(found, labels, strict=True)) / 597 == pytest.approx(
        scores["top5_accuracy"], abs=1e-6
    )


def test_splits_datasets_and_batches_other_than_the_runs_can_be_evaluated(command: Any, tuned: Path, tmp_path: Path) -> None:
    # Another dataset: three rows of a class, from another folder, by a recipe file.
    digits = ROOT / "manifests" / "digits"
    rows = [row for row in (digits / "valid.tsv").read_text().splitlines()[2:] if row.endswith("\t7")][:3]
    (tmp_path / "sevens").mkdir()
    (tmp_path / "sevens" / "test.tsv").write_text("\n".join([str(digits), *rows]) + "\n")
    recipe = tmp_path / "evaluate.yaml"
    content = {
        "checkpoint": {"path": str(tuned)},
        "dataset": {"config_overrides": {"path": str(tmp_path / "sevens")}},
        "splits": ["test"],
    }
    YAML().dump(content, recipe)

    sizes = [command("recipe", "evaluate", tmp_path / str(size), "--config", f"checkpoint.path={tuned}", "splits=[probe, valid]",
             f"task.config.batch_size={size}") for size in (7, 300)]  # fmt: skip
    sevens = command("recipe", "evaluate", "--config-file", recipe, tmp_path / "out")

    assert [outcome.status for outcome in (*sizes, sevens)] == [0, 0, 0]
    small, large = read_scores(tmp_path / "7"), read_scores(tmp_path / "300")
    assert set(small) == {"probe", "valid"}
    for split in small:
        assert small[split] == pytest.approx(large[split], abs=1e-5)
    assert [line.split("\t")[2] for line in (tmp_path / "out/predictions/test.tsv").read_text().splitlines()[1:]] == ["7"] * 3


def test_the_best_checkpoint_is_evaluated_on_demand(command: Any, tuned: Path, tmp_path: Path) -> None:
    shutil.copytree(tuned / "checkpoints", tmp_path / "checkpoints")
    (tmp_path / "checkpoints" / "scores" / "step_140.txt").write_text("2.0\n")

    outcome = command("recipe", "evaluate", tmp_path / "out", "--config", f"checkpoint.path={tmp_path}", "checkpoint.best=true")

    assert outcome.status == 0, outcome.err
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["checkpoint"].endswith("step_140")
    first = json.loads((tuned / "metrics" / "valid" / "valid.jsonl").read_text().splitlines()[0])
    assert read_scores(tmp_path / "out")["valid"]["accuracy"] == pytest.approx(first["Accuracy"], abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["checkpoint.path={pretrained}"], "was trained by the criterion `data2vec2`, which predicts no labels. Name probes"),
        (["checkpoint.path={tuned}", "splits=[test]"], "`test` is not a known split of"),
        (["checkpoint.path={tuned}/nothing"], "nothing does not exist"),
        ([], "`checkpoint.path` must be set"),
        (["checkpoint.path={tuned}", "dataset.config_overrides.path={letters}"], "valid.tsv:2: the label `x` is none of the 10"),
    ],
)
def test_mistakes_are_told_in_one_line(
    command: Any, pretrained: Path, tuned: Path, tmp_path: Path, settings: list[str], words: str
) -> None:
    letters = tmp_path / "letters"
    letters.mkdir()
    (letters / "valid.tsv").write_text(f"{ROOT / 'manifests' / 'digits'}\ndigits.zip:38:127\tx\n")
    places = {"pretrained": pretrained, "tuned": tuned, "letters": letters}

    outcome = command("recipe", "evaluate", tmp_path / "out", "--config", *(setting.format(**places) for setting in settings))

    assert outcome.status == 2
    # The last words; what is wrong in files stands below them, a line each.
    assert words in outcome.err.rpartition("fairseq2: error: ")[2]


def test_a_run_does_not_go_on_with_other_labels(command: Any, tuned: Path, tmp_path: Path) -> None:
    shutil.copytree(tuned / "checkpoints", tmp_path / "out" / "checkpoints")
    origin = tmp_path / "out" / "checkpoints" / "origin.yaml"
    origin.write_text(origin.read_text().replace("'9'", "nine"))
    recipe = ROOT / "recipes" / "demo" / "finetune_digits.yaml"

    outcome = command("recipe", "train", "--config-file", recipe, tmp_path / "out", "--config", *FINE_TUNING, "init.path=null")

    assert outcome.status == 2
    assert "what differs: 9, nine" in outcome.err.strip().splitlines()[-1]
