"""The mean of a run's last checkpoints, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import d2v_plugin
from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.core.storage import Record, read_record, write_record
from d2v_plugin.models.data2vec2.archs import image_tiny
from d2v_plugin.models.data2vec2.factory import create_model
from d2v_plugin.weights.averaging import average
from d2v_plugin.weights.directory import ModelDirectory, write_directory
from d2v_plugin.weights.run_folder import split_average


@pytest.fixture
def run(command: Any, tiny_recipe: Path, tmp_path: Path) -> Path:
    """A run with checkpoints of updates 1, 2 and 3."""
    out = tmp_path / "run"
    steps = ("regime.num_steps=3", "regime.checkpoint_every_n_steps=1", "regime.publish_metrics_every_n_steps=1")
    outcome = command("recipe", "train", "--config-file", tiny_recipe, out, "--config", *steps, "optimizer.config.lr=0.1")
    assert outcome.status == 0, outcome.err

    return out


def test_the_mean_of_checkpoints_is_loaded(run: Path) -> None:
    parts = [d2v_plugin.load(run / "checkpoints" / f"step_{number}").state_dict() for number in (1, 2, 3)]
    teachers = [d2v_plugin.load(run / "checkpoints" / f"step_{n}", weights="teacher").state_dict() for n in (2, 3)]

    cases = (
        (f"{run}@average=3", "student", parts),
        (f"{run}@average=2", "student", parts[1:]),
        (f"{run}/checkpoints/step_2@average=2", "student", parts[:2]),
        (f"{run}@average=2", "teacher", teachers),
    )
    for name, weights, expected in cases:
        for key, tensor in d2v_plugin.load(name, weights=weights).state_dict().items():
            mean = torch.stack([part[key].double() for part in expected]).mean(0).float()
            torch.testing.assert_close(tensor, mean, rtol=0.0, atol=1e-7, msg=f"{name}: {key}")
    assert not torch.equal(parts[0]["blocks.0.attn.qkv.weight"], parts[2]["blocks.0.attn.qkv.weight"])


def test_checkpoints_of_different_runs_are_refused(run: Path) -> None:
    older = run / "checkpoints" / "step_3"
    record = read_record(older)
    write_record(older, Record(record.files, {**record.info, "written": 1.0}))

    with pytest.raises(CheckpointError, match="step_3 was written before step_2, so they are not of one run"):
        d2v_plugin.load(f"{run}@average=2")


def test_what_has_no_mean_is_refused(tmp_path: Path, run: Path) -> None:
    model = create_model(image_tiny())
    write_directory(tmp_path / "encoder", ModelDirectory(config=model.config, student=model.state_dict()))
    for name, message in (
        (f"{run}@average=4", "holds 3 complete checkpoints up to step_3, but the mean of 4 is wanted"),
        (f"{tmp_path}/encoder@average=2", "is no run, which has several checkpoints"),
        (f"{tmp_path}/nothing@average=2", "is no run"),
    ):
        with pytest.raises(CheckpointError, match=re.escape(message)):
            d2v_plugin.load(name)

    x, y = {"a": torch.zeros(2)}, {"a": torch.zeros(3)}
    with pytest.raises(CheckpointError, match="another model"):
        average([(Path("one"), x), (Path("two"), y)])


def test_the_mean_keeps_its_type() -> None:
    states = [(Path(str(number)), {"a": torch.tensor([number], dtype=torch.bfloat16)}) for number in (1.0, 2.0, 6.0)]

    mean = average(states)["a"]

    assert mean.dtype == torch.bfloat16 and float(mean) == 3.0
    assert split_average("out/run") == ("out/run", 1) and split_average("out/run@average=5") == (Path("out/run"), 5)
