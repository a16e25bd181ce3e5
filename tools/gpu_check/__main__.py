"""One check of everything that only a GPU can show, in at most eight minutes; see recipes/gpu.md.

    python -m tools.gpu_check carry .gpu                # what a host without network needs besides the checkout
    python -m tools.gpu_check run out/gpu_check         # on the host; `--carried .gpu` if the package is not installed there
    python -m tools.gpu_check run out/dry --device cpu --tiny --steps masks kernels

Each step is a process with a time limit of its own; a step that fails or is cut does not stop the next. `results.json` has all
that was measured, also after the check itself was cut; `logs/` what each step said.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

# Without the package and PyTorch, which a bare host gets from what is carried.
from tools.gpu_check import carried
from tools.gpu_check.driver import LIMITS, Options, run_check


def make_parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_check", description=__doc__, formatter_class=layout)
    commands = parser.add_subparsers(dest="command", required=True)
    carry = commands.add_parser("carry", help="collect what a host without network lacks")
    carry.add_argument("folder", type=Path)
    for name, title in (("run", "run the check"), ("step", "run one step in this process")):
        command = commands.add_parser(name, help=title)
        if name == "step":
            command.add_argument("step", choices=LIMITS)
        command.add_argument("out", type=Path, help="where results go")
        command.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda; cpu is for dry runs")
        command.add_argument("--tiny", action="store_true", help="tiny models and inputs: a dry run")
        if name == "run":
            command.add_argument(
                "--steps", nargs="+", choices=LIMITS, default=list(LIMITS), metavar="STEP", help=", ".join(LIMITS)
            )
            command.add_argument("--seconds", type=float, default=460, help="for all steps together (default: 460)")
            command.add_argument("--carried", type=Path, metavar="FOLDER", help="what `carry` has collected: unpacked and used")

    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parsed = make_parser().parse_args(arguments)
    if parsed.command == "carry":
        carried.collect(parsed.folder)
        return 0
    options = Options(parsed.out, parsed.device, parsed.tiny)
    if parsed.command == "step":
        from tools.gpu_check.steps import run_step

        run_step(parsed.step, options)
        return 0
    environment = carried.install(parsed.carried, parsed.out / "site") if parsed.carried is not None else {}

    return run_check(options, parsed.steps, parsed.seconds, environment)


if __name__ == "__main__":
    sys.exit(main())
