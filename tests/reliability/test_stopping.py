"""A signal to any rank stops all of them after the same update, with one checkpoint, from which the run goes on as if nothing
had happened."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import Ranks, wait_for
from states import differences, load_states, read_metrics

from d2v_plugin.data.bad_samples import SampleError
from d2v_plugin.tasks import image
from d2v_plugin.training.checkpoints import manager, state_files
from d2v_plugin.training.checkpoints.saving import Saving
from d2v_plugin.training.stopping import ECHO_SECONDS
from d2v_plugin.training.unit import CriterionUnit

# Metrics every 4 updates, so that most stops fall within an interval.
SETTINGS = [
    *("regime.num_steps=400", "regime.checkpoint_every_n_steps=null", "regime.publish_metrics_every_n_steps=4"),
    *("lr_scheduler.config.num_warmup_steps=50", "model.config_overrides.dropout=0.1"),
]

SHORT = [*SETTINGS, "regime.num_steps=8", "lr_scheduler.config.num_warmup_steps=2"]
DATA = "dataset.config_overrides.path"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_recipe_text: str) -> Path:
    path = tmp_path_factory.mktemp("stopping") / "tiny.yaml"
    path.write_text(tiny_recipe_text)

    return path


@pytest.fixture(scope="module")
def finished(recipe: Path, few_pictures: Path) -> Path:
    """The output of a run of 8 updates that nothing interrupts."""
    out = recipe.parent / "finished"
    ranks = start(recipe, out, *SHORT, f"{DATA}={few_pictures}")
    assert ranks.wait() == [0], ranks.output()

    return out


def start(recipe: Path, out: Path, *settings: str, size: int = 1) -> Ranks:
    words = ["recipe", "train", "--no-rich", "--config-file", recipe, out, "--config", *SETTINGS, *settings]

    return Ranks(words, out.with_name(f"{out.name}_output"), size=size)


def wait_for_updates(ranks: Ranks, out: Path) -> None:
    metrics = out / "metrics" / "train.jsonl"
    wait_for(lambda: metrics.exists() or not all(process.is_alive() for process in ranks.processes), "the first updates")
    assert metrics.exists(), ranks.output()[-3000:]


def only_step(out: Path) -> int:
    (folder,) = (out / "checkpoints").glob("step_*")

    return int(folder.name.removeprefix("step_"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_stops_with_a_checkpoint_and_status_0(number: signal.Signals, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ranks = start(recipe, out)
    wait_for_updates(ranks, out)

    ranks.send(number)

    assert ranks.wait() == [0], ranks.output()
    step = only_step(out)
    line = f"Stopped after update {step:,} ({number.name} at rank 0): saved as {out}/checkpoints/step_{step}. The same command"
    assert line in ranks.output()
    assert "Traceback" not in ranks.output()


@pytest.mark.parametrize(("size", "parallelism"), [(1, "ddp"), (2, "ddp"), (2, "fsdp")])
def test_a_stopped_run_ends_as_if_it_had_not_been(size: int, parallelism: str, recipe: Path, tmp_path: Path) -> None:
    """On two ranks only one gets the signal."""
    settings = ["regime.num_steps=60", f"trainer.data_parallelism={parallelism}"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    uninterrupted, ranks = start(recipe, whole, *settings, size=size), start(recipe, stopped, *settings, size=size)
    wait_for_updates(ranks, stopped)

    ranks.send(signal.SIGTERM, rank=size - 1)

    assert ranks.wait() == [0] * size, ranks.output()
    step = only_step(stopped)
    assert step < 60 and f"Stopped after update {step} (SIGTERM at rank {size - 1})" in ranks.output()
    again = start(recipe, stopped, *settings, size=size)
    assert again.wait() == [0] * size and f"Resuming from step {step}." in again.output(), again.output()
    assert uninterrupted.wait() == [0] * size, uninterrupted.output()
    expected = load_states(whole, 60)
    assert differences(load_states(stopped, 60), expected) == []
    assert read_metrics(stopped) == read_metrics(whole)
    kinds = {name.split("/")[0] for name in expected}
    assert kinds == {"trainer", "model", "optimizer", "data_reader"}
    assert any(".teacher." in name for name in expected) and any("exp_avg_sq" in name for name in expected)
    # The comparison can fail.
    assert differences(load_states(stopped, step), expected)


def test_a_second_signal_leaves_at_once(recipe: Path, tmp_path: Path) -> None:
    """Also where the main thread cannot: it waits for the other rank, which was suspended."""
    out = tmp_path / "out"
    ranks = start(recipe, out, size=2)
    wait_for_updates(ranks, out)
    ranks.send(signal.SIGSTOP, rank=1)
    ranks.send(signal.SIGTERM)
    wait_for(lambda: "once more leaves at once" in ranks.output(), "the first signal")
    ranks.send(signal.SIGTERM)  # an echo, as torchrun sends
    time.sleep(ECHO_SECONDS + 0.1)
    assert ranks.processes[0].is_alive()

    before = time.monotonic()
    ranks.send(signal.SIGTERM)
    ranks.processes[0].join(10)

    assert time.monotonic() - before < 2
    assert ranks.processes[0].exitcode == 128 + signal.SIGTERM and "leaving at once" in ranks.output()
    ranks.processes[1].kill()
    assert not list((out / "checkpoints").glob("step_*"))


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sends this process a signal during an update."""

    def arrange(step: int) -> None:
        compute = CriterionUnit.process_batch

        def process_batch(unit: CriterionUnit, *args: Any) -> Any:
            output = compute(unit, *args)
            if unit.step_nr == step:
                signal.raise_signal(signal.SIGUSR1)
                time.sleep(0.05)
            return output

        monkeypatch.setattr(CriterionUnit, "process_batch", process_batch)

    return arrange


@pytest.mark.parametrize("step", [1, 3, 4, 5])
def test_a_run_goes_on_from_any_place_of_an_epoch(
    step: int, command: Any, stop_after: Any, recipe: Path, few_pictures: Path, finished: Path, tmp_path: Path
) -> None:
    """An epoch is 3 updates here."""
    words = ["recipe", "train", "--config-file", recipe, tmp_path / "out", "--config", *SHORT, f"{DATA}={few_pictures}"]
    stop_after(step)
    outcome = command(*words)
    assert outcome.status == 0 and f"Stopped after update {step} " in outcome.out, outcome.err

    stop_after(0)
    outcome = command(*words)

    assert outcome.status == 0 and "Finished after 8 updates." in outcome.out, outcome.err
    assert differences(load_states(tmp_path / "out", 8), load_states(finished, 8)) == []
    assert read_metrics(tmp_path / "out") == read_metrics(finished)


def test_an_update_that_is_saved_anyway_is_saved_once(
    command: Any, stop_after: Any, recipe: Path, few_pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    finish = manager.finish

    def count(saving: Saving, *arguments: Any) -> None:
        saved.append(saving.step_nr)
        finish(saving, *arguments)

    monkeypatch.setattr(manager, "finish", count)
    stop_after(4)
    settings = [*SHORT, f"{DATA}={few_pictures}", "regime.checkpoint_every_n_steps=4"]

    outcome = command("recipe", "train", "--config-file", recipe, tmp_path / "out", "--config", *settings)

    assert "Stopped after update 4" in outcome.out and saved == [4]
    assert [line["Step"] for line in read_metrics(tmp_path / "out")] == [4]


@pytest.mark.parametrize("step", [0, 3])
def test_a_stop_ends_a_search_for_samples_that_can_be_read(
    step: int, command: Any, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From an update on, all is unreadable; the signal comes when the run has nothing to compute with any more."""
    computed, failed, decode = [0], [0], image.decode
    compute = CriterionUnit.process_batch

    def process_batch(unit: CriterionUnit, *arguments: Any) -> Any:
        computed[0] = unit.step_nr
        return compute(unit, *arguments)

    def decode_or_fail(location: Any, num_channels: int) -> Any:
        if computed[0] < step:
            return decode(location, num_channels)
        failed[0] += 1
        if failed[0] == 250:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.001)
        raise SampleError("gone")

    monkeypatch.setattr(CriterionUnit, "process_batch", process_batch)
    monkeypatch.setattr(image, "decode", decode_or_fail)
    settings = [*SHORT, "regime.num_steps=30", "task.config.bad_samples.max_fraction=1.0"]

    outcome = command("recipe", "train", "--no-rich", "--config-file", recipe, tmp_path / "out", "--config", *settings)

    assert outcome.status == 0 and "Traceback" not in outcome.err, outcome.err[-3000:]
    saved = "nothing to save" if step == 0 else f"saved as {tmp_path}/out/checkpoints/step_{computed[0]}"
    assert f"Stopped after update {computed[0]} (SIGTERM at rank 0): {saved}." in outcome.out
    # All rows there are would have been tried otherwise.
    assert failed[0] < 900


def test_a_stop_that_cannot_save_is_an_error(
    command: Any, stop_after: Any, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(state: Any, path: Path) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(state_files, "write_state", write)
    stop_after(3)

    outcome = command("recipe", "train", "--no-rich", "--config-file", recipe, tmp_path / "out", "--config", *SHORT)

    assert outcome.status == 2 and "Traceback" not in outcome.err and "Stopped after" not in outcome.out
    assert "of step 3, could not be written" in outcome.err.splitlines()[-1] and "Make room" in outcome.err.splitlines()[-1]
