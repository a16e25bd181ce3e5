"""Ranks agree on what they must, differ in what they should, and end together."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from processes import Ranks

FAULTS = Path(__file__).with_name("faults.py")
DIGITS = Path(__file__).parents[2] / "manifests" / "digits"

SETTINGS = ["regime.num_steps=6", "regime.publish_metrics_every_n_steps=2", "regime.checkpoint_every_n_steps=2"]


def words_of(recipe: Path, out: Path, *settings: str) -> list[object]:
    return ["recipe", "train", "--extension", FAULTS, "--config-file", recipe, out, "--config", *SETTINGS, *settings]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_recipe_text: str) -> Path:
    path = tmp_path_factory.mktemp("ranks") / "tiny.yaml"
    path.write_text(tiny_recipe_text)

    return path


@pytest.mark.parametrize(("lost", "parallelism"), [(1, "ddp"), (0, "fsdp")])
def test_a_dead_rank_ends_the_others_with_one_message(recipe: Path, tmp_path: Path, lost: int, parallelism: str) -> None:
    out = tmp_path / "out"
    fault = ["criterion.name=faulty", "criterion.config.faults={kill: [4]}", f"criterion.config.fault_rank={lost}"]

    start = time.monotonic()
    ranks = Ranks(words_of(recipe, out, *fault, f"trainer.data_parallelism={parallelism}"), tmp_path, size=2)
    statuses = ranks.wait()

    survivor = 1 - lost
    assert statuses[lost] == -9 and statuses[survivor] == 1
    assert time.monotonic() - start < 60, "sooner than `gang.timeout`, because the connection closes"
    text = ranks.output(survivor)
    assert f"error: rank {survivor} has lost another process of this run" in text
    assert "`gang.timeout`" in text and "The same command continues from the last checkpoint." in text
    assert str(out / "logs" / "rank_*.log") in text
    assert text.count("has lost another process") == 1 and "Traceback" not in text


def write_manifests(folder: Path, *, train_rows: int, probe_rows: int, valid_rows: int) -> None:
    """The first digits, where they are."""
    folder.mkdir()
    for split, count in (("train", train_rows), ("probe", probe_rows), ("valid", valid_rows)):
        root, *rows = (DIGITS / f"{split}.tsv").read_text().splitlines()
        header = [row for row in rows if row.startswith("#")]
        lines = [str((DIGITS / root).resolve()), *header, *rows[len(header) : len(header) + count]]
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")


def spoil(manifest: Path, rows: range) -> None:
    """Let rows point at bytes that are no image."""
    lines = manifest.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if ":" in line and i > 0 and not line.startswith("#"))
    for row in rows:
        lines[first + row] = re.sub(r":\d+:\d+", ":0:7", lines[first + row])
    manifest.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("parallelism", ["ddp", "fsdp"])
def test_splits_that_do_not_divide_and_bad_samples_of_one_rank_end_cleanly(
    recipe: Path, tmp_path: Path, parallelism: str
) -> None:
    """Of three batches to probe on, rank 1 has one, and in that all samples are bad. Training drops bad samples, too."""
    write_manifests(tmp_path / "data", train_rows=30, probe_rows=40, valid_rows=9)
    spoil(tmp_path / "data" / "valid.tsv", range(4, 8))
    spoil(tmp_path / "data" / "train.tsv", range(3))
    probing = ["probing.probes=[{name: knn}]", "probing.train_split=probe", "regime.validate_every_n_steps=2"]
    data = f"dataset.config_overrides.path={tmp_path / 'data'}"

    ranks = Ranks(words_of(recipe, tmp_path / "out", data, *probing, f"trainer.data_parallelism={parallelism}"), tmp_path, size=2)

    assert ranks.wait() == [0, 0], ranks.output()
    bad = (tmp_path / "out" / "bad_samples.tsv").read_text()
    assert len({line.split("\t")[1] for line in bad.splitlines() if "valid.tsv" in line}) == 4
    last = json.loads((tmp_path / "out" / "metrics" / "valid" / "probe.jsonl").read_text().splitlines()[-1])
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["accuracies"]["pre-trained"]["probe_knn"] == pytest.approx(last["Probe k-NN Accuracy"])
    assert last["Probe k-NN Accuracy"] * 5 == pytest.approx(round(last["Probe k-NN Accuracy"] * 5)), "5 samples are left"


def test_too_many_bad_samples_of_one_rank_end_all_and_are_named(recipe: Path, tmp_path: Path) -> None:
    write_manifests(tmp_path / "data", train_rows=32, probe_rows=8, valid_rows=8)
    spoil(tmp_path / "data" / "train.tsv", range(1))
    settings = [f"dataset.config_overrides.path={tmp_path / 'data'}", "task.config.bad_samples={min_count: 0, max_fraction: 0.0}"]

    ranks = Ranks(words_of(recipe, tmp_path / "out", *settings), tmp_path, size=2)

    statuses = ranks.wait()
    assert sorted(statuses) == [1, 2], ranks.output()
    assert "error: 1 samples could not be read" in ranks.output(statuses.index(2))
    assert "has lost another process" in ranks.output(statuses.index(1))


def read_records(folder: Path, size: int, rank: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{size}_{rank}.jsonl").read_text().splitlines()]


def test_ranks_agree_on_what_they_must_and_differ_in_what_they_should(recipe: Path, tmp_path: Path) -> None:
    settings = [
        *("criterion.name=faulty", "criterion.config.faults={record: [1, 2, 3, 4, 5, 6]}", "criterion.config.fault_rank=-1"),
        *(f"criterion.config.record_to={tmp_path}", "task.config.image.color_jitter.brightness=0.5"),
        *("model.config_overrides.layer_drop=0.3", "model.config_overrides.dropout=0.5"),
    ]
    for size in (1, 2):
        ranks = Ranks(words_of(recipe, tmp_path / str(size), *settings), tmp_path / f"output_{size}", size=size)
        assert ranks.wait() == [0] * size, ranks.output()

    alone, first, second = (read_records(tmp_path, *which) for which in ((1, 0), (2, 0), (2, 1)))
    for whole, one, other in zip(alone, first, second, strict=True):
        # Every sample is seen by one rank, with the mask and the augmentation that it has in any case.
        assert len(one["samples"]) == len(other["samples"]) == 4 and not one["samples"].keys() & other["samples"].keys()
        assert one["samples"] | other["samples"] == whole["samples"]
        assert one["pixels"] | other["pixels"] == pytest.approx(whole["pixels"], rel=1e-5)
        masks = [str(view) for views in whole["samples"].values() for view in views]
        assert len(set(masks)) == len(masks), "no two views have the same mask"
        # The layers left out are those of the update; the average is the same everywhere; dropout is each rank's own.
        assert one["layers"] == other["layers"] == whole["layers"]
        assert one["teacher"] == other["teacher"]
        assert one["dropout"] != other["dropout"]
    assert len({tuple(record["layers"]) for record in first}) > 1, "each update draws anew"
