"""TensorBoard and W&B get the same names, the configuration, and no secrets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PROBES = [
    *("probing.probes=[{name: knn}]", "probing.train_split=probe", "probing.baselines=false"),
    *("regime.num_steps=2", "regime.publish_metrics_every_n_steps=1", "optimizer.config.layer_decay=0.5"),
]
SECRET = "hunter2-is-no-password"


@pytest.fixture
def finished(command: Any, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with W&B offline, whose environment and command line hold a secret."""
    for name, value in {"MY_API_KEY": SECRET, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    settings = [*PROBES, "common.metric_recorders.wandb={enabled: true, project: digits, run_name: %s}" % f"n-{SECRET}"]  # noqa: UP031
    outcome = command("recipe", "train", "--config-file", tiny_recipe, tmp_path / "out", "--config", *settings)
    assert outcome.status == 0, outcome.err

    return tmp_path / "out"


def test_tensorboard_and_wandb_have_the_same_names_and_no_secret(finished: Path) -> None:
    events = EventAccumulator(str(finished / "tb"))
    events.Reload()
    tags = events.Tags()["scalars"]

    assert {tag.split("/")[0] for tag in tags} == {"train", "targets", "optimizer", "time", "probe"}
    for tag in ("train/loss", "targets/deviation", "probe/knn", "optimizer/learning_rate", "time/samples_per_second"):
        assert len(events.Scalars(tag)) == (1 if tag == "probe/knn" else 2), tag
    rates = {tag.rpartition("/")[2]: events.Scalars(tag)[0].value for tag in tags if tag.startswith("optimizer/learning_rate/")}
    assert rates["block_0"] < rates["block_1"] < max(rates.values()), rates
    (configuration,) = events.Tensors("configuration/text_summary")
    text = configuration.tensor_proto.string_val[0].decode()
    assert text.startswith("```yaml\n") and "layer_decay: 0.5" in text
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(events.summary_metadata)
    assert "custom_scalars__config__" in events.Tags()["tensors"]

    files = [path for folder in ("tb", "wandb") for path in (finished / folder).rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path


def test_wandb_gets_what_tensorboard_gets(finished: Path) -> None:
    (path,) = (finished / "wandb").rglob("*.wandb")
    data = path.read_bytes()
    events = EventAccumulator(str(finished / "tb"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert tags and [tag for tag in tags if tag.encode() not in data] == []
    assert b"inverse_block" in data and b"layer_decay" in data
    assert (finished / "wandb_run_id").read_text().strip() in path.name


def test_a_wandb_that_refuses_is_one_line(
    command: Any, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**settings: object) -> None:
        raise wandb.errors.UsageError("api_key not configured (no-tty).\nCall wandb.login().")

    monkeypatch.setattr("wandb.init", refuse)
    setting = "common.metric_recorders.wandb.enabled=true"
    outcome = command("recipe", "train", "--config-file", tiny_recipe, tmp_path / "out", "--config", setting)

    assert outcome.status == 2 and "Traceback" not in outcome.err
    assert "`common.metric_recorders.wandb`" in outcome.err.splitlines()[-1] and "WANDB_MODE" in outcome.err.splitlines()[-1]


def test_rates_in_the_files_have_names(finished: Path) -> None:
    line = json.loads((finished / "metrics" / "train.jsonl").read_text().splitlines()[-1])

    assert isinstance(line["Learning Rate"], float) and any(key.startswith("lr/") for key in line)
