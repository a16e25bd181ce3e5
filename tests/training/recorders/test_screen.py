"""The screen of a run: a bar with loss and rate from the first update on, or lines at growing intervals."""

from __future__ import annotations

import itertools
import logging
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.progress import Progress

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import LossOutput
from d2v_plugin.training.recorders.screen import TrainingScreen, format_duration

BATCH = Batch(Modality.IMAGE, torch.zeros(8, 3, 4, 4), torch.arange(8))


class Clock:
    """Seconds that pass when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def update(screen: TrainingScreen, clock: Clock, number: int, *, seconds: float = 0.5, loss: float = 2.0) -> None:
    screen.before_update(number)
    clock.now += seconds
    screen.after_forward(BATCH, LossOutput(torch.tensor(loss), 1, {}))
    screen.after_update(number, norm=1.0, losses=[loss], skipped=False)


def test_the_bar_has_loss_and_rate_after_the_first_update() -> None:
    progress, clock = Progress(disable=True), Clock()
    train, other = progress.add_task("train", total=10), progress.add_task("valid", total=3)
    screen = TrainingScreen(progress, 10, num_ranks=2, clock=clock)

    update(screen, clock, 1, loss=0.42111)

    shown = {task.id: task.description for task in progress.tasks}
    assert shown == {train: "train, loss 0.421, 32 samples/s", other: "valid"}


def test_validation_takes_no_time_of_an_update(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    screen = TrainingScreen(Progress(disable=True), 10, clock=clock)
    update(screen, clock, 1)
    screen.record_metric_values("train", {"loss": 2.0, "lr": 0.1}, 1)
    clock.now += 1000.0
    with caplog.at_level(logging.INFO):
        screen.record_metric_values("valid/probe", {"probe_linear": 0.93441, "data_time": 3.0}, 1)
        screen.record_metric_values("valid/dev_other", {"wer": 12.5, "loss": 1.0}, 1)
    update(screen, clock, 2)

    assert screen.describe() == "loss 2, 16 samples/s"
    assert [record.getMessage() for record in caplog.records] == [
        "Update 1: linear probe 0.9344",
        "Update 1: dev_other: loss 1, word error rate 12.5",
    ]


def test_skipped_updates_have_no_loss() -> None:
    clock = Clock()
    screen = TrainingScreen(Progress(disable=True), 10, clock=clock)
    screen.before_update(1)
    clock.now += 1.0
    screen.after_update(1, norm=float("nan"), losses=[float("nan")], skipped=True)

    assert screen.describe() == "0 samples/s"


def test_without_a_bar_lines_become_rarer_and_the_last_update_has_one(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    screen = TrainingScreen(None, 400, read_rate=lambda: 0.004, clock=clock)
    with caplog.at_level(logging.INFO):
        for number in range(1, 401):
            update(screen, clock, number)

    lines = [record.getMessage() for record in caplog.records]
    numbers = [int(line.split()[1]) for line in lines]
    gaps = [later - sooner for sooner, later in itertools.pairwise(numbers)]
    assert numbers[0] == 1 and numbers[-1] == 400 and len(lines) < 60
    assert gaps[0] == 4 and gaps[-2] > 3 * gaps[0] and gaps[:-1] == sorted(gaps[:-1])
    assert lines[1] == "Update 5 of 400: loss 2, 16 samples/s, learning rate 0.004, 3 min left"


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.2, "4 s"), (89, "89 s"), (180, "3 min"), (7500, "2 h 05 min"), (100_800, "1 d 4 h")]
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_a_terminal_sees_bar_scores_and_nothing_else(tiny_recipe: Path, tmp_path: Path) -> None:
    """In a pseudo-terminal of 60 columns: no line of the bar is wider, and the log's lines are not there."""
    words = ["recipe", "train", "--config-file", str(tiny_recipe), str(tmp_path / "out"), "--config", "regime.num_steps=60"]
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "60", "LINES": "30", "TERM": "xterm", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "d2v_plugin", *words], stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    data = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        data += part
    os.close(ours)
    text = data.decode()

    assert process.wait() == 0, text
    # Not "60/60": the bar is drawn ten times a second and removed after the last update.
    assert re.search(r"train, loss \S+, [\d,]+ samples/s .*\d/60", text)
    assert "Environment Variables" not in text and "Parameter Size" not in text and "run on CPU" not in text
