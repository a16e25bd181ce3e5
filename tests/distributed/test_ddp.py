"""Two processes compute what one does, and resume bit-identically."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Ranks

from tests.conftest import ROOT

# With a large epsilon Adam's update is smooth in the gradient. Otherwise it turns the rounding noise of gradients that are
# zero in theory (those of the key biases) into whole steps, and no two summation orders agree.
SETTINGS = [
    *("regime.num_steps=4", "regime.checkpoint_every_n_steps=2", "regime.publish_metrics_every_n_steps=2"),
    *("regime.validate_every_n_steps=2", "probing.probes=[{name: knn}]", "probing.train_split=probe"),
    *("optimizer.config.eps=1.0", "optimizer.config.lr=0.1", "trainer.max_grad_norm=4.0"),
]


def words_of(recipe: Path, out: Path, *settings: str) -> list[str]:
    return ["recipe", "train", "--config-file", str(recipe), str(out), "--config", *SETTINGS, *settings]


def start_two_ranks(recipe: Path, out: Path, *settings: str) -> Ranks:
    return Ranks(words_of(recipe, out, *settings), out.with_suffix(".output"), size=2)


def run_under_torchrun(words: list[str]) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "d2v_plugin"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FAIRSEQ2_DEVICE": "cpu"}

    return subprocess.run([*launcher, *words], capture_output=True, text=True, env=environment, timeout=300)


def load(out: Path, step: int, kind: str) -> dict[str, Any]:
    (path,) = (out / "checkpoints" / f"step_{step}" / kind).rglob("*.pt")

    return torch.load(path, weights_only=False)  # type: ignore[no-any-return]


def read_metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics" / "train.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory, tiny_recipe_text: str, few_pictures: Path) -> tuple[Path, Path]:
    """A recipe, and the output of its run on two processes."""
    folder = tmp_path_factory.mktemp("ddp")
    recipe = folder / "tiny.yaml"
    recipe.write_text(tiny_recipe_text.replace(f"{ROOT}/manifests/digits", str(few_pictures)))
    result = run_under_torchrun(words_of(recipe, folder / "two"))
    assert result.returncode == 0, result.stderr

    return recipe, folder / "two"


def test_two_processes_equal_one_on_the_same_batches(command: Any, two_processes: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, two = two_processes
    assert command("recipe", "train", "--config-file", recipe, tmp_path / "one", "--config", *SETTINGS).status == 0

    for step in (2, 4):
        one_model, two_model = load(tmp_path / "one", step, "model"), load(two, step, "model")
        assert one_model.keys() == two_model.keys()
        for name, value in one_model.items():
            assert torch.allclose(two_model[name], value, rtol=1e-6, atol=1e-6), name
    start, end = load(tmp_path / "one", 2, "model"), load(tmp_path / "one", 4, "model")
    assert max(float((end[name] - start[name]).abs().max()) for name in end) > 1e-3, "the weights hardly moved"


def test_a_resumed_run_of_two_processes_is_bit_identical(two_processes: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, two = two_processes
    shutil.copytree(two / "checkpoints" / "step_2", tmp_path / "resumed" / "checkpoints" / "step_2")

    ranks = start_two_ranks(recipe, tmp_path / "resumed")

    assert ranks.wait() == [0, 0], ranks.output()
    expected, actual = load(two, 4, "model"), load(tmp_path / "resumed", 4, "model")
    assert expected.keys() == actual.keys()
    assert [name for name in expected if not torch.equal(expected[name], actual[name])] == []
    expected, actual = load(two, 4, "optimizer"), load(tmp_path / "resumed", 4, "optimizer")
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_sharded_parameters_train_like_replicated_ones(two_processes: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, two = two_processes

    ranks = start_two_ranks(recipe, tmp_path / "fsdp", "trainer.data_parallelism=fsdp")

    assert ranks.wait() == [0, 0], ranks.output()
    for expected, actual in zip(read_metrics(two), read_metrics(tmp_path / "fsdp"), strict=True):
        for name in ("Step", "Loss", "Gradient Norm", "Target Deviation"):
            assert actual[name] == pytest.approx(expected[name], rel=1e-5), name
