"""Runs the steps of the check, each as long as it may, and gathers what they found. Needs nothing but Python."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

LIMITS: Final = {
    "environment": 60,
    "parity": 90,
    "masks": 60,
    "curves": 120,
    "kernels": 60,
    "speed_image": 110,
    "speed_audio": 100,
    "speed_text": 80,
    "ranks": 60,
    "reading": 60,
}
"""Seconds that each step may take, in their order: what matters most comes first. They add up to more than all have together."""

SHORTEST: Final = 5.0
"""Seconds below which a step is not begun: Python takes as long to import PyTorch."""

ROOT: Final = Path(__file__).parents[2]


@dataclass(frozen=True)
class Options:
    """Where results go, and what is checked."""

    out: Path
    device: str = "cuda"
    tiny: bool = False


def run_check(options: Options, steps: Sequence[str], seconds: float, environment: Mapping[str, str]) -> int:
    """Run steps one after the other.

    :param seconds: for all of them.
    :param environment: variables that a host needs which has not installed the package.
    :returns: 0 = all ended well.
    """
    tiny = ["--tiny"] if options.tiny else []
    common = [str(options.out.resolve()), "--device", options.device, *tiny]
    commands = {step: [sys.executable, "-m", "tools.gpu_check", "step", step, *common] for step in steps}
    (options.out / "logs").mkdir(parents=True, exist_ok=True)
    # Whoever cuts the check ends this process; what runs in sessions of its own has to be told.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    end, status = time.monotonic() + seconds, 0
    for step, command in commands.items():
        limit = min(LIMITS[step], end - time.monotonic())
        outcome = run_limited(command, limit, options.out / "logs" / f"{step}.log", environment)
        status |= outcome["status"] != 0
        write_results(options.out, step, outcome)
        print(f"{step}: {outcome['ended']}, {outcome['seconds']:.0f} s", flush=True)
    print(f"results: {options.out / 'results.json'}")

    return status


def run_limited(command: Sequence[str], limit: float, log: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """Run a command for so many seconds at most; how it ended, and the end of what it said if not well."""
    if limit < SHORTEST:
        return {"status": 1, "ended": "no time left", "seconds": 0.0}
    start = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, cwd=ROOT, env={**os.environ, **environment}, start_new_session=True
        )
        try:
            status = process.wait(limit)
            ended = "done" if status == 0 else f"failed ({status})"
        except subprocess.TimeoutExpired:
            status, ended = 1, f"cut after {limit:.0f} s"
        finally:
            # Also what it has started.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    outcome = {"status": status, "ended": ended, "seconds": time.monotonic() - start}

    return outcome if status == 0 else outcome | {"log": log.read_text(errors="replace").splitlines()[-12:]}


def write_results(out: Path, step: str, outcome: Mapping[str, Any]) -> None:
    """Add a step to the results, with all that it had found until it ended."""
    path, found = out / "results.json", out / f"{step}.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results[step] = {**outcome, "found": json.loads(found.read_text()) if found.exists() else None}
    path.write_text(json.dumps(results, indent=1) + "\n")
