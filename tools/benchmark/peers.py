"""Ours beside Hugging Face's transformers, flashlight and, from a checkout of fairseq, the original: the same work in turn.

    python -m tools.benchmark peers
    python -m tools.benchmark peers --rows features/text-mixed ctc-mixed --precision fp32 bf16 --seconds 60 --json peers.json
    python -m tools.benchmark peers --rows original/image --original FAIRSEQ --python PYTHON

Each side is a process of its own with one thread, unless `--threads` says otherwise; they take turns, and the ratio of each pair
counts: its median and its range. Processor time does not depend on what else runs on the machine, time on the wall does. Memory
is the peak of a process, imports included. Where both sides have the same weights, the largest difference of their results is
shown, divided by the largest value if that is above 1. `--python` is an interpreter that can import the checkout.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch

from tools.benchmark.peer_rows import ROWS
from tools.benchmark.peer_side import Setting
from tools.experiments.runner import describe_machine

ROOT: Final = Path(__file__).parents[2]
ORIGINAL: Final = ("original/image", "original/audio", "original/text")


class Process:
    """A side that works when it is told to."""

    def __init__(self, setting: Setting, python: str, module: str) -> None:
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [python, "-m", "tools.benchmark.peer_side", module, json.dumps(asdict(setting))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": str(setting.threads), "PYTHONPATH": path},
        )
        self._name = f"{setting.row} in {setting.precision}, {setting.side}"
        self.compares: bool = self._read()["compares"]

    def ask(self, line: str) -> Any:
        assert self._process.stdin is not None
        print(line, file=self._process.stdin, flush=True)
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise SystemExit(f"{self._name}: the process ended with status {self._process.wait()}; its last lines are above.")
        return json.loads(line)


def measure(setting: Setting, seconds: float, python: str) -> dict[str, Any]:
    """Let both sides of a row work in turn."""
    rows, original = "tools.benchmark.peer_rows", "tools.benchmark.peer_original"
    is_original = setting.row in ORIGINAL
    theirs = Process(replace(setting, side="theirs"), *((python, original) if is_original else (sys.executable, rows)))
    ours = Process(setting, sys.executable, original if is_original else rows)
    pairs: list[tuple[Any, Any]] = []
    start = time.perf_counter()
    while len(pairs) < 3 or time.perf_counter() - start < seconds:
        if len(pairs) % 2:
            pairs.append((ours.ask("run"), theirs.ask("run")))
        else:
            second = theirs.ask("run")
            pairs.append((ours.ask("run"), second))
    difference = compare(ours, theirs, Path(setting.folder)) if ours.compares and setting.precision == "fp32" else None
    memory = [side.ask("end")["memory"] for side in (ours, theirs)]
    ratios = sorted(own["cpu"] / other["cpu"] for own, other in pairs)

    return {
        "row": setting.row,
        "precision": setting.precision,
        "pairs": len(pairs),
        "ratio": median(ratios),
        "lowest": ratios[0],
        "highest": ratios[-1],
        "wall_ratio": median(own["wall"] / other["wall"] for own, other in pairs),
        "ours": median(own["cpu"] for own, _ in pairs),
        "theirs": median(other["cpu"] for _, other in pairs),
        "memory_ratio": memory[0] / memory[1],
        "memory": memory,
        "difference": difference,
    }


def compare(ours: Process, theirs: Process, folder: Path) -> float:
    for name, side in (("ours", ours), ("theirs", theirs)):
        side.ask(f"outputs {folder / name}.pt")
    own, other = (torch.load(folder / f"{name}.pt", weights_only=True).double() for name in ("ours", "theirs"))
    return float((own - other).abs().max() / max(1.0, float(other.abs().max()))) if own.shape == other.shape else float("inf")


HEADER: Final = """\
| work | precision | ratio (lowest to highest of the pairs) | on the wall | ours, s | theirs, s | memory | GiB | differ by |
|---|---|---|---|---|---|---|---|---|"""


def format_row(row: dict[str, Any]) -> str:
    difference = "" if row["difference"] is None else f"{row['difference']:.0e}"
    title = ROWS[row["row"]][0] if row["row"] in ROWS else f"an update of the original, {row['row'].partition('/')[2]}"
    return (
        f"| {title} | {row['precision']} | {row['ratio']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f}, {row['pairs']}) "
        f"| {row['wall_ratio']:.2f} | {row['ours']:.3g} | {row['theirs']:.3g} | {row['memory_ratio']:.2f} "
        f"| {row['memory'][0]:.2f} / {row['memory'][1]:.2f} | {difference} |"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    names = [*ROWS, *ORIGINAL]
    parser.add_argument(
        "--rows", nargs="+", choices=names, metavar="ROW", help=f"of {', '.join(names)} (default: all that can be)"
    )
    parser.add_argument(
        "--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32"], help="bf16 is autocast (default: fp32)"
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="for each row, at least three pairs (default: 30)")
    parser.add_argument("--threads", type=int, default=1, help="of each side (default: 1)")
    parser.add_argument("--original", type=Path, metavar="CHECKOUT", help="of fairseq, for the rows original/…")
    parser.add_argument("--python", default=sys.executable, help="interpreter for the checkout (default: this one)")
    parser.add_argument("--tiny", action="store_true", help="tiny models: tries the command, measures nothing of worth")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")


def run(arguments: argparse.Namespace) -> None:
    chosen = arguments.rows or [*ROWS, *(ORIGINAL if arguments.original is not None else ())]
    if arguments.original is None and (needy := [row for row in chosen if row in ORIGINAL]):
        raise SystemExit(f"{', '.join(needy)}: name a checkout of fairseq by `--original`.")
    rows = []
    print(f"{describe_machine()}, {time.strftime('%Y-%m-%d')}, threads: {arguments.threads}\n\n{HEADER}", flush=True)
    for row in chosen:
        for precision in ["fp32"] if row.startswith("decoding/") else arguments.precision:
            with tempfile.TemporaryDirectory() as folder:
                original = None if arguments.original is None else str(arguments.original.absolute())
                setting = Setting(row, "ours", precision, arguments.threads, arguments.tiny, folder, original)
                rows.append(measure(setting, arguments.seconds, arguments.python))
            print(format_row(rows[-1]), flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({"machine": describe_machine(), "rows": rows}, indent=1) + "\n")
