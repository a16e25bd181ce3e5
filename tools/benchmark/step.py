"""What one update costs: forward, backward, clipping, optimizer, the teacher's average; settings are those of the recipes.

    python -m tools.benchmark step --arch image_base --batch 2 --views 16 --precision fp32 [--json FILE]
    python -m tools.benchmark step --arch audio_base --seconds 10 --precision bf16 --device cuda --compile
    python -m tools.benchmark step --arch image_base --sweep views --plot views.png
    python -m tools.benchmark step --arch audio_base --checkpoint-every 1
    python -m tools.benchmark step --table

Every row is measured in a process of its own, after two updates to warm up. FLOPs are those that the model needs, without what is
computed twice. The rate of the device's own matrix product (2048x768x3072, on GPUs 8192x8192x8192, same precision) is measured
between the updates, the best counts; the MFU is the share of the rate in the card's data sheet. Memory is the peak of the
process, imports included, or what the GPU has allocated at most; a table says what of it the parts of an update hold.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tools.benchmark.update import ROOT, Setting
from tools.experiments.runner import describe_machine

SWEEPS: dict[str, tuple[Any, ...]] = {
    "views": (1, 2, 4, 8, 16),
    "batch": (1, 2, 4, 8),
    "seconds": (2.5, 5.0, 10.0, 20.0),
    "tokens": (64, 128, 256, 512),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--arch", default="image_base", help="a data2vec 2.0 arch of one modality (default: image_base)")
    parser.add_argument("--batch", type=int, default=2, help="samples in an update (default: 2)")
    parser.add_argument("--views", type=int, help="masked views of each sample (default: the recipe's)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16 is autocast, as in the recipes")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--compile", action="store_true", help="compile every Transformer block")
    parser.add_argument(
        "--checkpoint-every",
        type=int,
        metavar="N",
        help="compute every N-th block again in the backward pass (trainer.activation_checkpointing)",
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="length of audio samples (default: 10)")
    parser.add_argument("--tokens", type=int, default=512, help="length of text samples (default: 512)")
    parser.add_argument("--threads", type=int, help="of the CPU (default: all)")
    parser.add_argument("--sample-data", action="store_true", help="read the repository's sample data with the recipe's task")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds of timed updates, at least three (default: 20)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows there")
    parser.add_argument("--sweep", choices=SWEEPS, help="one row for each of several values")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the sweep (needs matplotlib)")
    parser.add_argument("--table", action="store_true", help="the base models of all modalities in fp32 and bf16")


def run(arguments: argparse.Namespace) -> None:
    rows = []
    for setting in list_settings(arguments):
        rows.append(measure_apart(setting))
        if len(rows) == 1:
            print(HEADER)
        print(format_row(rows[-1]), flush=True)
    print("\n" + format_parts(rows) + "\n\n" + format_memory(rows))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    if arguments.plot is not None:
        from tools.experiments.plots import draw_sweep

        draw_sweep(rows, arguments.sweep or "views", arguments.plot, machine=describe_machine())


def list_settings(arguments: argparse.Namespace) -> list[Setting]:
    setting = Setting(
        arch=arguments.arch,
        batch=arguments.batch,
        views=arguments.views,
        precision=arguments.precision,
        device=arguments.device,
        compiled=arguments.compile,
        checkpoint_every=arguments.checkpoint_every,
        seconds=arguments.seconds,
        tokens=arguments.tokens,
        threads=arguments.threads,
        sample_data=arguments.sample_data,
        budget=arguments.budget,
    )
    if arguments.table:
        return [
            replace(setting, arch=f"{modality}_base", views=None, precision=precision)
            for precision in ("fp32", "bf16")
            for modality in ("image", "audio", "text")
        ]
    if arguments.sweep is not None:
        return [replace(setting, **{arguments.sweep: value}) for value in SWEEPS[arguments.sweep]]

    return [setting]


def measure_apart(setting: Setting) -> dict[str, Any]:
    """Measure in a process of its own, whose memory nothing else has touched."""
    threads = {} if setting.threads is None else {"OMP_NUM_THREADS": str(setting.threads)}
    done = subprocess.run(
        [sys.executable, "-m", "tools.benchmark.update", json.dumps(asdict(setting))],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **threads},
    )
    if done.returncode != 0:
        raise SystemExit(f"The measurement of {setting.arch} in {setting.precision} failed; its last lines are above.")

    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


HEADER = """\
| arch | input | precision | s / update | samples / s | model GFLOP/s | GEMM GFLOP/s | share | MFU | peak, GiB | host waits |
|---|---|---|---|---|---|---|---|---|---|---|"""


def format_row(row: dict[str, Any]) -> str:
    modality = row["arch"].split("_")[0]
    length = {"image": "", "audio": f" x {row['seconds']:g} s", "text": f" x {row['tokens']} tokens"}[modality]
    name = row["arch"] + (", compiled" if row["compiled"] else "")
    if row["checkpoint_every"] is not None:
        name += f", 1 block in {row['checkpoint_every']} recomputed"
    memory = f"{row['peak_memory_gib']:.2f}"
    mfu = "" if row.get("mfu") is None else f"{row['mfu']:.1%}"

    return (
        f"| {name} | {row['batch']}{length} x {row['views']} views | {row['precision']} | {row['seconds_per_update']:.3g} "
        f"| {row['samples_per_second']:.3g} | {row['model_gflops']:,.0f} | {row['gemm_gflops']:,.0f} | {row['share']:.0%} "
        f"| {mfu} | {memory} | {row['host_synchronisations']} |"
    )


def format_parts(rows: Sequence[dict[str, Any]]) -> str:
    """The parts of an update, as shares of their sum."""
    names = list(rows[0]["parts"])
    lines = ["| arch | precision | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for row in rows:
        total = sum(row["parts"].values())
        shares = " | ".join(f"{row['parts'][name] / total:.1%}" for name in names)
        lines.append(f"| {row['arch']} | {row['precision']} | {shares} |")

    return "\n".join(lines)


def format_memory(rows: Sequence[dict[str, Any]]) -> str:
    """GiB that the parts of an update hold; what is left to the peak are temporary tensors, and on a CPU the process."""
    names = list(rows[0]["memory_gib"])
    lines = ["| arch | precision | GiB of: " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for row in rows:
        sizes = " | ".join(f"{row['memory_gib'][name]:.2f}" for name in names)
        lines.append(f"| {row['arch']} | {row['precision']} | {sizes} |")

    return "\n".join(lines)
