"""Recordings are transcribed, classified and tagged by a model that the pre-training recipe wrote."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from d2v_plugin.cli.main import main
from d2v_plugin.scoring.scores import accuracy, mean_average_precision, word_error_rate

ROOT = Path(__file__).parents[2]
WORDS = ROOT / "manifests" / "words"
RECIPE = ROOT / "recipes" / "demo" / "finetune_words.yaml"
NUM_WORDS = 40

FAST = ["pictures.enabled=false", "probing.probes=[]", "common.torch.num_threads=1"]


@dataclass
class Run:
    """A fine-tuned model and what it learned from."""

    output: Path
    manifests: Path


def steps(count: int) -> list[str]:
    names = ("num_steps", "publish_metrics_every_n_steps", "validate_every_n_steps", "checkpoint_every_n_steps")

    return [f"regime.{name}={count}" for name in names]


def read_scores(output: Path, split: str) -> dict[str, Any]:
    """The last ones."""
    lines = (output / "metrics" / "valid" / f"{split}.jsonl").read_text().splitlines()

    return json.loads(lines[-1])  # type: ignore[no-any-return]


def write_recipe(path: Path, **sections: str) -> None:
    """The recipe with other sections."""
    recipe = RECIPE.read_text()
    for name, content in sections.items():
        start = recipe.index(f"\n{name}:\n") + 1
        end = recipe.index("\n\n", start)
        recipe = f"{recipe[:start]}{name}: {content}{recipe[end:]}"
    path.write_text(recipe)


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four voices that say the ten digits; as tags, whether a word has an `e` and whether it has an `o`."""
    folder = tmp_path_factory.mktemp("manifests")
    lines = (WORDS / "train.tsv").read_text().splitlines()[2 : 2 + NUM_WORDS]
    rows = [f"{line}\t{';'.join(letter for letter in 'eo' if letter in line.split()[-1])}" for line in lines]
    header = [str(WORDS), "#columns\tpath\tsize\tlabel\ttags"]
    for split in ("train", "valid"):
        (folder / f"{split}.tsv").write_text("\n".join([*header, *rows]) + "\n")

    return folder


@pytest.fixture(scope="module")
def transcriber(pretrained_audio: Path, manifests: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Fine-tuned with CTC."""
    output = tmp_path_factory.mktemp("speech") / "ctc"
    settings = [f"init.path={pretrained_audio}", f"dataset.config_overrides.path={manifests}", "optimizer.config.lr=2.0e-3"]
    command = ["recipe", "train", "--config-file", str(RECIPE), str(output), "--config"]
    main([*command, *FAST, *steps(300), *settings, "task.config.max_num_elements=64000"])

    return Run(output, manifests)


def test_ctc_learns_a_few_dozen_spoken_words(transcriber: Run) -> None:
    scores = read_scores(transcriber.output, "valid")
    lines = (transcriber.output / "predictions" / "valid.tsv").read_text().splitlines()

    assert scores["Word Error Rate (WER)"] < 0.1
    assert scores["Character Error Rate (CER)"] < 0.1
    assert lines[0] == "row\tprediction\treference\tconfidence\tpath" and len(lines) == 1 + NUM_WORDS
    right = [line.split("\t")[1] == line.split("\t")[2] for line in lines[1:]]
    assert 1 - sum(right) / NUM_WORDS == pytest.approx(scores["Word Error Rate (WER)"])


def predict(command: Any, output: Path, manifests: Path, *settings: str) -> list[dict[str, Any]]:
    """What a run says of the split that it was scored on."""
    words = [f"checkpoint.path={output}", f"inputs={manifests / 'valid.tsv'}", "common.torch.num_threads=1", *settings]
    outcome = command("recipe", "predict", output / "predicted", "--config", *words)
    assert outcome.status == 0, outcome.err

    return [json.loads(line) for line in (output / "predicted" / "predictions.jsonl").read_text().splitlines()]


def read_column(manifests: Path, column: int) -> list[str]:
    return [line.split("\t")[column] for line in (manifests / "valid.tsv").read_text().splitlines()[2:]]


def test_a_trained_model_transcribes_with_the_error_rate_it_was_scored_with(command: Any, transcriber: Run) -> None:
    lines = predict(command, transcriber.output, transcriber.manifests)

    rate = word_error_rate([line["text"] for line in lines], read_column(transcriber.manifests, 2))
    assert rate == pytest.approx(read_scores(transcriber.output, "valid")["Word Error Rate (WER)"], abs=1e-6)
    # It is surer of what is right, and knows when a word is said.
    right = [line for line, label in zip(lines, read_column(transcriber.manifests, 2), strict=True) if line["text"] == label]
    assert sum(line["confidence"] for line in right) / len(right) > 0.8
    assert all(0.0 <= line["words"][0]["start"] < line["words"][0]["end"] < 2.0 for line in right)


def test_a_search_with_a_lexicon_makes_fewer_errors_on_voices_never_heard(command: Any, transcriber: Run, tmp_path: Path) -> None:
    lexicon = tmp_path / "lexicon.txt"
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    lexicon.write_text("\n".join(words) + "\n")
    found = {}
    for name, search in (("greedy", "null"), ("search", f"{{lexicon: {lexicon}, beam_size: 50}}")):
        outcome = command(
            "recipe", "evaluate", tmp_path / name, "--config",
            f"checkpoint.path={transcriber.output}", f"dataset.config_overrides.path={WORDS}",
            f"criterion.config.beam_search={search}", "common.torch.num_threads=1",
        )  # fmt: skip
        assert outcome.status == 0, outcome.err
        found[name] = json.loads((tmp_path / name / "scores.json").read_text())["scores"]["valid"]["wer"]
    lines = (tmp_path / "search" / "predictions" / "valid.tsv").read_text().splitlines()[1:]
    found_words = {word for line in lines for word in line.split("\t")[1].split()}

    assert found["search"] < found["greedy"]
    assert found_words <= set(words)


def test_mistakes_in_transcripts_are_listed_before_anything_is_trained(
    command: Any, pretrained_audio: Path, manifests: Path, tmp_path: Path
) -> None:
    lines = (manifests / "train.tsv").read_text().splitlines()
    for row, transcript in ((2, "four four four four four four four four"), (5, "")):
        fields = lines[row].split("\t")
        lines[row] = "\t".join([*fields[:2], transcript])
    (tmp_path / "train.tsv").write_text("\n".join(lines) + "\n")
    errors = []
    for _ in range(2):
        settings = [f"init.path={pretrained_audio}", f"dataset.config_overrides.path={tmp_path}", "validation.splits=[train]"]
        outcome = command("recipe", "train", "--config-file", RECIPE, tmp_path / "out", "--config", *FAST, *steps(2), *settings)
        assert outcome.status == 2 and "Traceback" not in outcome.err
        errors.append(outcome.err)
        (tmp_path / "train.tsv").write_text("\n".join(lines[:5] + lines[6:]) + "\n")

    assert f"{tmp_path}/train.tsv:6: the transcript is empty" in errors[0]
    assert f"{tmp_path}/train.tsv:3: the recording is too short for its transcript" in errors[1]


def test_fairseqs_letter_labels_and_1_0_train_from_the_command_line(command: Any, manifests: Path, tmp_path: Path) -> None:
    rows = [line.split("\t") for line in (manifests / "train.tsv").read_text().splitlines()[2:]]
    (tmp_path / "train.tsv").write_text("\n".join([str(WORDS), *("\t".join(row[:2]) for row in rows)]) + "\n")
    (tmp_path / "train.ltr").write_text("".join(" ".join(row[2].upper()) + " |\n" for row in rows))
    (tmp_path / "dict.ltr.txt").write_text("".join(f"{letter} 1\n" for letter in "|EFGHINORSTUVWXZ"))
    write_recipe(tmp_path / "recipe.yaml", model="{family: data2vec1, arch: audio_tiny}")
    masking = "{probability: 0.3, length: 3, channel_probability: 0.2, channel_length: 8}"
    outcome = command(
        "recipe", "train", "--config-file", tmp_path / "recipe.yaml", tmp_path / "out", "--config", *FAST, *steps(4),
        f"criterion.config.masking={masking}", "criterion.config.freeze_updates=2", "criterion.config.freeze_frontend=true",
        f"dataset.config_overrides.path={tmp_path}", "validation.splits=[train]",
    )  # fmt: skip

    assert outcome.status == 0, outcome.err
    assert (tmp_path / "out" / "predictions" / "train.tsv").read_text().splitlines()[1].split("\t")[2].isupper()


@pytest.mark.parametrize(
    ("task", "criterion", "score", "least"),
    [
        ("", "{name: classification, config: {pooling: mean}}", "Accuracy", 0.9),
        ("tags: true, ", "{name: audio_tagging, config: {masking: null}}", "Mean Average Precision", 0.9),
    ],
)
def test_recordings_are_classified_and_tagged(
    command: Any, pretrained_audio: Path, manifests: Path, tmp_path: Path, task: str, criterion: str, score: str, least: float
) -> None:
    task = f"{{name: audio_classification, config: {{{task}batches_per_update: 1, max_num_elements: 64000}}}}"
    write_recipe(tmp_path / "recipe.yaml", task=task, criterion=criterion)
    outcome = command(
        "recipe", "train", "--config-file", tmp_path / "recipe.yaml", tmp_path / "out", "--config", *FAST, *steps(70),
        f"init.path={pretrained_audio}", f"dataset.config_overrides.path={manifests}", "optimizer.config.head_lr=5.0e-3",
    )  # fmt: skip

    assert outcome.status == 0, outcome.err
    assert read_scores(tmp_path / "out", "valid")[score] > least
    lines = predict(command, tmp_path / "out", manifests, "prediction.threshold=0")
    if score == "Accuracy":
        own = accuracy([line["label"] for line in lines], read_column(manifests, 2))
    else:
        found = [{tag["tag"]: tag["probability"] for tag in line["tags"]} for line in lines]
        tags = [[letter in tags.split(";") for letter in "eo"] for tags in read_column(manifests, 3)]
        own = mean_average_precision([[shares[letter] for letter in "eo"] for shares in found], tags)
    assert own == pytest.approx(read_scores(tmp_path / "out", "valid")[score], abs=1e-6)
