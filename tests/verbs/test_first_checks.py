"""What is wrong with keys, names, types, ranges, files, splits, labels and rates is found without importing anything heavy."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from d2v_plugin.verbs.first_checks import find_mistakes

ROOT = Path(__file__).parents[2]
PROBES = "probing.probes=[{name: linear}]"


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    folder = tmp_path / "sounds"
    folder.mkdir()
    (folder / "train.tsv").write_text(".\n#columns\tpath\tsize\trate\na.wav\t100\t\nb.wav\t100\t44100\n")
    (folder / "valid.tsv").write_text(".\n#classes\tx\ty\na.wav\t100\tx\n")

    return folder


def check(folder: Path, *settings: str) -> list[str]:
    base = [
        "task.name=audio_pretraining",
        "dataset.family=audio_manifest",
        f"dataset.config_overrides.path={folder}",
        "regime.num_steps=1",
    ]

    return find_mistakes(["out", "--config", *base, *settings])


def test_rates_labels_and_splits_are_told_together(sounds: Path) -> None:
    mistakes = check(sounds, PROBES, "probing.train_split=train", "probing.valid_split=test")

    assert len(mistakes) == 3
    assert "`probing.train_split`" in mistakes[0] and f"{sounds / 'train.tsv'} has no labels" in mistakes[0]
    assert "`probing.valid_split`: `test` is not a known split" in mistakes[1] and "train, valid" in mistakes[1]
    assert "recordings of 44100 samples per second" in mistakes[2] and "task.config.audio.resample: true" in mistakes[2]


def test_nothing_is_wrong_with_what_is_right(sounds: Path) -> None:
    assert check(sounds, "task.config.audio.resample=true") == []
    assert check(sounds, "task.config.split=valid", PROBES, "probing.train_split=valid") == []
    for name in ("digits", "words", "books", "multimodal", "finetune_words", "finetune_books"):
        assert find_mistakes(["--config-file", str(ROOT / "recipes" / "demo" / f"{name}.yaml"), "out"]) == []


def test_fine_tuning_needs_labels(sounds: Path) -> None:
    mistakes = check(sounds, "criterion.name=ctc", "task.config.audio.resample=true", "validation.splits=[valid, dev]")

    assert ["`task.config.split`" in mistakes[0], "`dev` is not a known split" in mistakes[1]] == [True, True]


def test_any_row_with_a_label_or_letters_beside_the_manifest_are_labels(sounds: Path) -> None:
    settings = ["criterion.name=ctc", "task.config.split=valid", "validation.splits=[valid]", "task.config.audio.resample=true"]
    (sounds / "valid.tsv").write_bytes(b".\r\n#columns\tpath\tsize\tlabel\r\na.wav\t100\t\r\nb.wav\t100\ttwo\r\n")
    assert check(sounds, *settings) == []
    (sounds / "valid.tsv").write_text(".\na.wav\t100\n")
    assert "has no labels" in check(sounds, *settings)[0]
    (sounds / "valid.ltr").write_bytes(b"\xef\xbb\xbft w o |\n")
    assert check(sounds, *settings) == []


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_manifests_that_are_no_files_are_left_to_their_reader(sounds: Path, kind: str) -> None:
    (sounds / "train.tsv").unlink()
    os.mkfifo(sounds / "train.tsv") if kind == "pipe" else (sounds / "train.tsv").mkdir()
    assert check(sounds, "criterion.name=ctc") == []


def test_folders_that_are_no_datasets_are_told(tmp_path: Path) -> None:
    assert "which holds no manifest" in check(tmp_path)[0]
    assert "does not exist" in check(tmp_path / "none")[0]
    published = find_mistakes(["--verbose", "--config-file", str(ROOT / "recipes" / "image" / "pretrain_base.yaml"), "out"])
    assert len(published) == 1 and "`dataset.config_overrides.path` must be set" in published[0]


def test_what_only_prints_the_configuration_needs_no_files(tmp_path: Path) -> None:
    settings = ["--config", f"dataset.config_overrides.path={tmp_path}", "dataset.family=image_manifest", "modle.arch=x"]

    assert find_mistakes(["--dump-config", *settings]) == [
        "--config: `modle` is not a known key. Did you mean `model`? Known: common, criterion, dataset, gang, guard, init, "
        "lr_scheduler, model, optimizer, pictures, probing, regime, task, trainer, validation.",
        "`regime.num_steps` must be set: the number of updates to train for.",
    ]


@pytest.mark.parametrize(
    ("setting", "mistakes"),
    [
        (
            "probing.probes=[{name: knn, config: {k: x}}]",
            ["--config: `probing.probes.0.config.k`: `x` is not valid: Value must be"],
        ),
        ("criterion.config={masking: {name: blok}}", ["`blok` is not a known mask sampler. Did you mean `block`?"]),
        ("criterion.config={modalities: {image: {masking: {config: {a: 1}}}}}", []),  # the name is that of the others
        ("model={family: wav2vec2, config_overrides: {x: 1}}", []),  # fairseq2's own
        ("model.arch=image_bas", ["`image_bas` is not a known arch of the model family `data2vec`."]),
        ("dataset.family=imges", ["`imges` is not a known dataset family."]),
        ("trainer.mixed_precision.mode=on", ["--config: `trainer.mixed_precision.mode`: `on` is not valid: Value must be a"]),
        ("common.no_sweep_dir=1", ["--config: `common.no_sweep_dir`: `1` is not valid: Value must be of type bool, but"]),
        ("regime.num_steps=many", ["--config: `regime.num_steps`: `many` is not valid: Value must be of type int."]),
        ("regime.num_steps=.inf", ["--config: `regime.num_steps`: `inf` is not valid: Value must be of type int."]),
        ("regime.num_steps=3.7", ["--config: `regime.num_steps`: `3.7` is not valid: Value must be of type int."]),
        ("regime.num_steps=1e3", []),
        ("regime={num_steps: 10%, validate_every_n_steps: null}", []),
    ],
)
def test_keys_names_and_types(setting: str, mistakes: list[str]) -> None:
    told = find_mistakes(["--dump-config", "--config", "regime.num_steps=1", setting])

    assert [line.startswith(start) for line, start in zip(told, mistakes, strict=True)] == [True] * len(mistakes), told
    if "name" in setting:
        assert find_mistakes(["--dump-config", "--config", setting], extended=True) == []


@pytest.mark.parametrize(
    ("verb", "setting", "mistakes"),
    [
        ("evaluate", "checkpoint.bst=true", ["--config: `bst` is not a known key of `checkpoint`. Did you mean `best`?"]),
        ("evaluate", "task.config.audio.nothing=1", []),  # the task is the run's
        ("extract", "features.nothing=1", ["--config: `nothing` is not a known key of `features`."]),
        ("inspect", "num_samples=x", ["--config: `num_samples`: `x` is not valid: Value must be of type int."]),
        ("predict", "inputs=[a, b]", []),
        ("export", "regime.num_steps=3", ["--config: `regime` is not a known key."]),
    ],
)
def test_other_verbs_have_other_sections(verb: str, setting: str, mistakes: list[str]) -> None:
    told = find_mistakes(["out", "--config", setting], verb)

    assert [line.startswith(start) for line, start in zip(told, mistakes, strict=True)] == [True] * len(mistakes), told


@pytest.mark.parametrize("words", [["--confg", "x"], ["--config", "a=1"], ["out", "--config", "a"], []])
def test_command_lines_that_fairseq2_refuses_are_left_to_it(words: list[str]) -> None:
    assert [mistake for mistake in find_mistakes(words) if "regime" not in mistake] == []
