"""Calibration: how long an update takes on this machine, and how much memory, by a few updates in a process of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

from fairseq2.recipe.error import RecipeError

from d2v_plugin.verbs.own.memory import halve_pass
from d2v_plugin.verbs.own.plan_file import dump_recipe, print_on_first_rank
from d2v_plugin.verbs.own.wish import Wish
from d2v_plugin.weights.run_folder import RunFolder

_LAUNCHER: Final = re.compile(r"^(RANK|LOCAL_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE|GROUP_\w*|ROLE_\w*|MASTER_\w+|TORCHELASTIC_\w+)$")
_MOST_UPDATES: Final = 12
_FEWEST_UPDATES: Final = 3
_PATIENCE: Final = 900.0
"""Seconds until the first updates must be there."""

_QUIET: Final = ("probing.probes=[]", "pictures.enabled=false", "common.metric_recorders.tensorboard.enabled=false")
_LENGTH: Final = "regime={num_steps: 1000, publish_metrics_every_n_steps: 1}"


class TooLargeError(Exception):
    """The device has not enough memory."""


@dataclass(frozen=True)
class Calibration:
    """What a few updates told."""

    seconds: float
    """Of an update, one process."""

    samples: float
    """Of an update."""

    peak: int
    """Bytes that the process took; 0 = unknown."""


def calibrate_fitting(recipe: dict[str, Any], wish: Wish, *, seconds: float) -> Calibration:
    """Measure updates; where memory does not suffice, make forward passes smaller and say so.

    :param recipe: its task is changed.
    :raises RecipeError: one sample does not fit, or training cannot start; says why.
    """
    print_on_first_rank(["Measuring the time of an update …"])
    while True:
        try:
            return calibrate(recipe, wish, seconds=seconds)
        except TooLargeError:
            if not halve_pass(recipe["task"]["config"]):
                raise RecipeError("One sample alone takes more memory than there is; choose a smaller `model.arch`.") from None
            print_on_first_rank(["An update takes more memory than there is: its forward passes are halved, twice as many."])


def calibrate(recipe: Mapping[str, Any], wish: Wish, *, seconds: float) -> Calibration:
    """Train for a few updates, and throw the result away.

    :param wish: its settings hold, except those of the regime and of the start.
    :param seconds: how long to measure, about; at least three updates are made.
    :raises TooLargeError: the device has not enough memory.
    :raises RecipeError: training cannot start; says why.
    """
    kept = [word for word in wish.settings if not word.startswith(("regime", "init", "probing", "pictures"))]
    with tempfile.TemporaryDirectory(prefix="d2v_calibration_") as name:
        folder = Path(name)
        (folder / "plan.yaml").write_text(dump_recipe(recipe))
        words = [
            "--no-rich",
            "--config-file",
            str(folder / "plan.yaml"),
            str(folder / "run"),
            "--config",
            *kept,
            *_QUIET,
            _LENGTH,
        ]
        environment = {key: value for key, value in os.environ.items() if not _LAUNCHER.match(key)}
        with (folder / "errors").open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "d2v_plugin", "recipe", "train", *words],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
            try:
                lines, peak = _watch(process, RunFolder(folder / "run").metrics / "train.jsonl", seconds)
            finally:
                process.kill()
                process.wait()
        if len(lines) < _FEWEST_UPDATES:
            _raise_error((folder / "errors").read_text(errors="replace"))

    # The first updates wait for caches and allocators.
    later = lines[2:]
    device = max(
        (value for line in lines for key, value in line.items() if key.startswith("Peak") and "Memory" in key), default=0
    )

    return Calibration(
        median(line["Lapse Time"] for line in later), median(line["Number of Examples"] for line in later), int(device or peak)
    )


def _watch(process: subprocess.Popen[bytes], path: Path, seconds: float) -> tuple[list[dict[str, Any]], int]:
    """Wait for enough updates; returns what was published of each, and the most memory of the process."""
    start, first, lines, peak = time.monotonic(), None, [], 0
    while process.poll() is None and time.monotonic() - start < _PATIENCE:
        time.sleep(0.1)
        peak = max(peak, _read_peak(process.pid))
        text = path.read_text() if path.exists() else ""
        lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        if lines and first is None:
            first = time.monotonic()
        enough = first is not None and time.monotonic() - first >= seconds and len(lines) >= _FEWEST_UPDATES
        if len(lines) >= _MOST_UPDATES or enough:
            break

    return lines, peak


def _read_peak(pid: int) -> int:
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return 0 if found is None else int(found[1]) << 10


def _raise_error(errors: str) -> None:
    _, mark, reason = errors.rpartition("fairseq2: error: ")
    if "has not enough memory" in reason:
        raise TooLargeError
    raise RecipeError(reason.strip() if mark else f"training did not start:\n{errors[-2000:]}")
