"""Fine-tuning on pairs of real text, from what pre-training wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from d2v_plugin.data.tables import GLUE
from d2v_plugin.scoring.scores import pearson

ROOT = Path(__file__).parents[2]
BOOKS = ROOT / "manifests" / "books"
DEMO = ROOT / "recipes" / "demo" / "finetune_books.yaml"
ONE_STEP = [
    "regime.num_steps=1",
    "lr_scheduler.config.num_warmup_steps=0",
    *(f"regime.{name}_every_n_steps=1" for name in ("publish_metrics", "validate", "checkpoint")),
]
NUMBERS = "{texts: [first, second], label: score, numbers: true, divisor: 5.0}"


def train(command: Any, output: Path, *settings: str) -> Any:
    return command("recipe", "train", "--config-file", DEMO, output, "--config", "pictures.enabled=false", *settings)


def read_scores(output: Path) -> dict[str, float]:
    lines = (output / "metrics" / "valid" / "valid.jsonl").read_text().splitlines()

    return json.loads(lines[-1])  # type: ignore[no-any-return]


def test_pairs_of_passages_are_told_apart_after_pre_training(command: Any, tmp_path: Path, pretrained_text: Path) -> None:
    steps = [f"regime.{name}=80" for name in ("num_steps", "validate_every_n_steps", "checkpoint_every_n_steps")]
    outcome = train(command, tmp_path / "out", f"init.path={pretrained_text}", *steps)

    assert outcome.status == 0, outcome.err
    assert read_scores(tmp_path / "out")["Accuracy"] > 0.9
    rows = [line.split("\t") for line in (tmp_path / "out" / "predictions" / "valid.tsv").read_text().splitlines()]
    assert rows[0] == ["row", "prediction", "reference", "confidence", "path"] and len(rows) == 301
    assert rows[5][4] == f"{ROOT}/manifests/book_pairs/valid.tsv:6"
    agree = sum(row[1] == row[2] for row in rows[1:])
    assert agree / 300 == pytest.approx(read_scores(tmp_path / "out")["Accuracy"], abs=1e-6)

    # A split without labels, as GLUE's are for its server: the checkpoint knows the classes.
    _, *pairs = (ROOT / "manifests" / "book_pairs" / "valid.tsv").read_text().splitlines()
    unlabelled = "".join(f"{pair.rpartition(chr(9))[0]}\n" for pair in pairs[:20])
    (tmp_path / "test.tsv").write_text("first\tsecond\n" + unlabelled)
    settings = [f"checkpoint.path={tmp_path / 'out'}", f"dataset.config_overrides.path={tmp_path}", "splits=[test]"]
    outcome = command("recipe", "evaluate", tmp_path / "scores", "--config", *settings)

    assert outcome.status == 0, outcome.err
    found = [line.split("\t") for line in (tmp_path / "scores" / "predictions" / "test.tsv").read_text().splitlines()]
    assert [row[:3] for row in found[1:]] == [[*row[:2], ""] for row in rows[1:21]]


def test_numbers_are_regressed(command: Any, tmp_path: Path) -> None:
    """The layout of STS-B; the score says how many tildes there are."""
    for split, count in (("train", 32), ("valid", 16)):
        rows = [f"{'~' * (i % 6 + 1)}\t{'.' * (i % 3 + 1)}\t{i % 6}" for i in range(count)]
        (tmp_path / f"{split}.tsv").write_text("first\tsecond\tscore\n" + "\n".join(rows) + "\n")
    data = [f"dataset.config_overrides.path={tmp_path}", f"dataset.config_overrides.layout={NUMBERS}"]
    scores = ["pearson_and_spearman", "pearson", "spearman"]
    chosen = [f"criterion.config.scores=[{', '.join(scores)}]", f"regime.score_metric={scores[0]}"]
    steps = ["regime.num_steps=40", "regime.validate_every_n_steps=40", "lr_scheduler.config.num_warmup_steps=5"]

    outcome = train(command, tmp_path / "out", *data, *chosen, *steps)

    assert outcome.status == 0, outcome.err
    found = read_scores(tmp_path / "out")
    assert found["Pearson Correlation"] > 0.8
    both = (found["Pearson Correlation"] + found["Spearman Correlation"]) / 2
    assert found["Mean of Pearson and Spearman"] == pytest.approx(both)

    words = [f"checkpoint.path={tmp_path / 'out'}", f"inputs={tmp_path / 'valid.tsv'}"]
    assert command("recipe", "predict", tmp_path / "predicted", "--config", *words).status == 0
    lines = [json.loads(line) for line in (tmp_path / "predicted" / "predictions.jsonl").read_text().splitlines()]
    correlation = pearson([line["value"] for line in lines], [i % 6 for i in range(16)])
    assert correlation == pytest.approx(found["Pearson Correlation"], abs=1e-5)


@pytest.mark.parametrize("task", ["cola", "mrpc", "mnli", "sts_b"])
def test_recipes_of_glue_train_and_score(command: Any, tmp_path: Path, task: str) -> None:
    layout = GLUE[task]
    columns = layout.names or [*layout.texts, layout.label]
    for name in layout.files.values():
        fields = [columns, *([f"{column} {i}" for column in columns] for i in range(8))][bool(layout.names) :]
        for i, row in enumerate(fields[-8:]):
            row[columns.index(layout.label)] = layout.classes[i % len(layout.classes)] if layout.classes else f"{i / 2}"
        (tmp_path / name).write_text("".join("\t".join(row) + "\n" for row in fields))
    data = [f"dataset.config_overrides.{name}={path}" for name, path in (("path", tmp_path), ("vocabulary", BOOKS))]
    settings = ["init.path=null", "model.arch=text_tiny", "task.config.max_length=64", "pictures.enabled=false", *data, *ONE_STEP]

    recipe = ROOT / "recipes" / "text" / f"finetune_glue_{task}.yaml"
    outcome = command("recipe", "train", "--config-file", recipe, tmp_path / "out", "--config", *settings)

    assert outcome.status == 0, outcome.err
    scores = {
        "cola": {"Matthews Correlation", "Accuracy"},
        "mrpc": {"Mean of Accuracy and F1", "Accuracy", "F1"},
        "mnli": {"Accuracy"},
        "sts_b": {"Mean of Pearson and Spearman", "Pearson Correlation", "Spearman Correlation"},
    }[task]
    for split in layout.files.keys() - {"train"}:
        path = tmp_path / "out" / "metrics" / "valid" / f"{split}.jsonl"
        assert path.is_file() != split.startswith("test")
        if path.is_file():
            assert scores <= json.loads(path.read_text().splitlines()[-1]).keys()


def test_data2vec1_is_fine_tuned_alike(command: Any, tmp_path: Path) -> None:
    outcome = train(command, tmp_path / "out", "model.family=data2vec1", *ONE_STEP)

    assert outcome.status == 0, outcome.err
    assert 0.0 <= read_scores(tmp_path / "out")["Accuracy"] <= 1.0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("model.config_overrides={text: {vocab_size: 999}}", "has 2,000 ids, but the model has 999"),
        ("dataset.config_overrides.layout={texts: [first, third], label: book}", "train.tsv:1: there is no column `third`"),
        ("dataset.config_overrides.layout={texts: [first], label: book, classes: [devil, angel]}", "label `jargon` is none of"),
        ("dataset.config_overrides.vocabulary=recipes", "recipes holds no vocabulary"),
        ("criterion.config.scores=[pearson]", "`scores` must not have pearson, because the labels are classes"),
    ],
)
def test_mistakes_are_one_line_before_training(command: Any, tmp_path: Path, setting: str, message: str) -> None:
    outcome = train(command, tmp_path / "out", setting, *ONE_STEP)

    assert outcome.status == 2
    # The last words; what is wrong in files stands below them, a line each.
    assert message in outcome.err.rpartition("fairseq2: error:")[2]
