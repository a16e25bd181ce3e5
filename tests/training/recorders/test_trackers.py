"""TensorBoard and W&B get the same names, the configuration, and no secrets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SETTINGS = [
    *("probing.probes=[{name: knn}]", "probing.train_split=probe", "probing.baselines=false"),
    *(
        "regime.num_steps=2",
        "regime.publish_metrics_every_n_steps=1",
        "optimizer.config.layer_decay=0.5",
        "pictures.num_embedded=20",
    ),
]
EXTENSION = """
from fairseq2.metrics.recorders import MetricRecorder

class Mine(MetricRecorder):
    def record_metric_values(self, category, values, step_nr=None):
        with open("{path}", "a") as file:
            print(category, step_nr, float(values.get("loss", 0.0)), file=file)

    def close(self):
        pass

def setup_fairseq2_extension(container):
    container.collection.register(MetricRecorder, lambda resolver: Mine())
"""
SECRET = "hunter2-is-no-password"


def read_scalars(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()

    return events


def test_a_run_is_recorded_under_the_same_names_and_without_secrets(
    command: Any, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B is offline; the environment and the command line hold a secret."""
    for name, value in {"MY_API_KEY": SECRET, "WANDB_MODE": "offline"}.items():
        monkeypatch.setenv(name, value)
    wandb_section = f"common.metric_recorders.wandb={{enabled: true, project: digits, run_name: n-{SECRET}}}"
    out = tmp_path / "out"
    (tmp_path / "mine.py").write_text(EXTENSION.format(path=tmp_path / "mine.txt"))
    words = ("recipe", "train", "--extension", tmp_path / "mine.py", "--config-file", tiny_recipe, out)
    outcome = command(*words, "--config", *SETTINGS, wandb_section)
    assert outcome.status == 0, outcome.err

    # TensorBoard
    events = read_scalars(out / "tb")
    tags = events.Tags()["scalars"]
    assert {tag.split("/")[0] for tag in tags} == {"loss", "train", "targets", "optimizer", "time", "probe"}
    for tag in ("loss", "train/loss", "targets/deviation", "probe/knn", "optimizer/learning_rate", "time/samples_per_second"):
        assert len(events.Scalars(tag)) == (1 if tag == "probe/knn" else 2), tag
    rates = {tag.rpartition("/")[2]: events.Scalars(tag)[0].value for tag in tags if tag.startswith("optimizer/learning_rate/")}
    assert rates["block_0"] < rates["block_1"] < max(rates.values()), rates
    text = events.Tensors("configuration/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.startswith("```yaml\n") and "layer_decay: 0.5" in text
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(events.summary_metadata)
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    projected = list((out / "tb" / "pictures").rglob("metadata.tsv"))
    assert len(projected[0].read_text().splitlines()) == 20

    # W&B, whose own process writes the file
    wandb.teardown()
    (path,) = (out / "wandb").rglob("*.wandb")
    data = path.read_bytes()
    assert [tag for tag in tags if tag.encode() not in data] == []
    assert b"inverse_block" in data and b"layer_decay" in data and (out / "wandb_run_id").read_text() in path.name

    # A recorder of an extension is told, too.
    assert "train 2 " in (tmp_path / "mine.txt").read_text()

    # JSON lines have fairseq2's names, and rates by group.
    line = json.loads((out / "metrics" / "train.jsonl").read_text().splitlines()[-1])
    assert line["Learning Rate"] == max(value for name, value in line.items() if name.startswith("lr/"))

    files = [file for folder in ("tb", "wandb", "metrics") for file in (out / folder).rglob("*") if file.is_file()]
    assert len(files) > 4
    for file in files:
        assert SECRET.encode() not in file.read_bytes(), file


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
