"""A loss or gradient that is not finite on one rank changes nothing on any; three in a row end the run; spikes are reported."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Ranks
from states import load_states, read_metrics

from d2v_plugin.training.health.spikes import MIN_COUNT, QUIET_STEPS, SpikeDetector

FAULTS = Path(__file__).with_name("faults.py")

SETTINGS = [
    *("regime.num_steps=7", "regime.publish_metrics_every_n_steps=1", "regime.checkpoint_every_n_steps=1"),
    "criterion.name=faulty",
]

# Updates 2, 4 and 6 go wrong, each in another way.
THREE_FAULTS = "criterion.config.faults={nan_loss: [2], infinite_loss: [4], infinite_gradient: [6]}"


def words_of(recipe: Path, out: Path, *settings: str) -> list[object]:
    return ["recipe", "train", "--extension", FAULTS, "--config-file", recipe, out, "--config", *SETTINGS, *settings]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_recipe_text: str) -> Path:
    path = tmp_path_factory.mktemp("numbers") / "tiny.yaml"
    path.write_text(tiny_recipe_text)

    return path


def read_suspects(out: Path, rank: int = 0) -> list[dict[str, str]]:
    with (out / "suspects" / f"rank_{rank}.tsv").open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


def changes(out: Path, step: int) -> list[str]:
    """What an update changed of weights, teacher and the optimizer's moments, on any rank."""
    before, after = (load_states(out, number) for number in (step - 1, step))
    learned = [name for name in after if name.startswith("model/") or (name.startswith("optimizer/") and ".state." in name)]
    assert any(".exp_avg" in name for name in learned) and any("criterion.teacher" in name for name in learned)

    return [name for name in learned if not torch.equal(torch.as_tensor(before[name]), torch.as_tensor(after[name]))]


def check_three_faults(out: Path) -> None:
    for step in (2, 4, 6):
        assert changes(out, step) == [], f"update {step} was to be skipped"
    for step in (3, 5, 7):
        changed = changes(out, step)
        assert any("criterion.teacher" in name for name in changed) and any("exp_avg" in name for name in changed)

    metrics = read_metrics(out)
    assert [line["Skipped Updates"] for line in metrics] == [0, 1, 1, 2, 2, 3, 3]
    assert ["Loss" in line for line in metrics] == [True, False, True, False, True, False, True]
    assert all(math.isfinite(value) for line in metrics for value in line.values() if isinstance(value, float))


@pytest.mark.parametrize(("parallelism", "impl"), [("ddp", "foreach"), ("fsdp", "fused")])
def test_a_fault_of_one_rank_changes_nothing_on_any(recipe: Path, tmp_path: Path, parallelism: str, impl: str) -> None:
    out = tmp_path / "out"
    settings = ["criterion.config.fault_rank=1", f"trainer.data_parallelism={parallelism}", f"optimizer.config.impl={impl}"]

    ranks = Ranks(words_of(recipe, out, THREE_FAULTS, *settings), tmp_path, size=2, environment={"SAVE_SKIPPED": "1"})

    assert ranks.wait() == [0, 0], ranks.output()
    check_three_faults(out)
    assert "Skipped update 2, 1 in a row; 3 end the run: gradient norm nan" in ranks.output()
    for rank in range(2):
        rows = read_suspects(out, rank)
        assert [row["step"] for row in rows] == ["2"] * 4 + ["4"] * 4 + ["6"] * 4
        assert {row["event"] for row in rows} == {"not_finite"}
        assert all(f"train.tsv:{int(row['id']) + 3}: " in row["sample"] and row["modality"] == "image" for row in rows)
    # Whose loss it was, the losses tell.
    assert [row["loss"] for row in read_suspects(out, 1)][::4][:2] == ["nan", "inf"]
    assert all(math.isfinite(float(row["loss"])) for row in read_suspects(out, 0))


@pytest.mark.parametrize("impl", ["fused", "naive"])
def test_a_skipped_update_counts_in_no_optimizer(
    command: Any, recipe: Path, tmp_path: Path, impl: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fused ones skip on the device; fairseq's epsilon depends on the number of updates; gradients are accumulated."""
    settings = [f"optimizer.config.impl={impl}", "optimizer.config.fairseq_eps=true", "task.config.max_batch_size=4"]
    monkeypatch.setattr("d2v_plugin.training.checkpoints.hold.HoldObserver.after_update", lambda *args, **kwargs: None)

    outcome = command(*words_of(recipe, tmp_path, THREE_FAULTS, *settings))

    assert outcome.status == 0, outcome.err
    check_three_faults(tmp_path)
    states = load_states(tmp_path, 7)
    counts = {int(value) for name, value in states.items() if name.endswith((".step", ".num_updates"))}
    assert counts == {4}


def test_a_run_without_faults_is_not_touched(command: Any, recipe: Path, tmp_path: Path) -> None:
    """After a fault in an update of learning rate zero, all is as if there had been none."""
    settings = [
        *("lr_scheduler.config.num_warmup_steps=3", "criterion.config.ema={start: 1.0, end: 1.0}"),
        "optimizer.config.betas=[0.0, 0.0]",
    ]
    command(*words_of(recipe, tmp_path / "fault", "criterion.config.faults={nan_loss: [1]}", *settings))
    command(*words_of(recipe, tmp_path / "none", *settings))

    with_fault, without = (load_states(tmp_path / name, 7) for name in ("fault", "none"))
    assert all(torch.equal(with_fault[name], value) for name, value in without.items() if name.startswith("model/"))


def test_three_in_a_row_end_the_run_on_all_ranks(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    faults = ["criterion.config.faults={nan_loss: [2, 3, 5, 6, 7]}", "criterion.config.fault_rank=1"]

    ranks = Ranks(words_of(recipe, out, *faults, "regime.num_steps=20"), tmp_path, size=2)

    assert ranks.wait() == [2, 2], ranks.output()
    assert "Traceback" not in ranks.output(0) and "Traceback" not in ranks.output(1)
    assert "error: A loss or gradient is not finite at step 7, as in every step since 5: 3 in a row" in ranks.output(0)
    assert f"listed in {out / 'suspects' / 'rank_*.tsv'}" in ranks.output(0) and "`optimizer.config.lr`" in ranks.output(0)
    assert [int(row["step"]) for row in read_suspects(out, 1)][::4] == [2, 3, 5, 6, 7]
    assert not (out / "checkpoints" / "step_7").exists()


def test_a_spike_is_reported_once_with_its_samples(command: Any, recipe: Path, tmp_path: Path) -> None:
    updates = f"[{MIN_COUNT + 2}, {MIN_COUNT + 3}]"
    settings = ["regime.num_steps=36", "regime.checkpoint_every_n_steps=null", "trainer.max_grad_norm=1.0"]

    outcome = command(*words_of(recipe, tmp_path, f"criterion.config.faults={{large_loss: {updates}}}", *settings))

    assert outcome.status == 0, outcome.err
    rows = read_suspects(tmp_path)
    assert [(row["step"], row["event"]) for row in rows[::8]] == [("34", "loss_spike"), ("34", "gradient_spike")]
    assert len(rows) == 2 * 8
    text = " ".join(outcome.err.split())
    assert text.count("is far above its recent") == 2 and "Gradient norm" in text and f"at update {MIN_COUNT + 2}" in text


def test_spikes_are_told_from_noise_and_trends() -> None:
    torch.manual_seed(1)
    noise = ((0.5 * torch.randn(2000)).exp() * torch.linspace(5.0, 1.0, 2000)).tolist()  # heavy tails, falling
    detector = SpikeDetector()

    found = [i for i, value in enumerate(noise) if detector.add(value) is not None]

    assert len(found) <= 4
    assert detector.add(500.0) is not None
    assert all(detector.add(3.0 * 1.002**i) is None for i in range(300)), "a rise by half in 200 updates is none"


def test_a_storm_of_spikes_is_reported_once_in_100_updates() -> None:
    detector = SpikeDetector()

    assert [step for step in range(1, 301) if detector.may_speak(step)] == [1, 1 + QUIET_STEPS, 1 + 2 * QUIET_STEPS]
