"""Benchmarks, one command each:

    python -m tools.benchmark data     how fast batches are read
    python -m tools.benchmark step     what one update costs
    python -m tools.benchmark cost     what whole runs would cost on many GPUs
    python -m tools.benchmark peers    ours beside other programs

`--help` behind a command tells its options, the module of its name beside this file what it measures.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tools.benchmark import cost, data, peers, step


def main(arguments: Sequence[str] | None = None) -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m tools.benchmark", description=__doc__, formatter_class=layout)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module, title in (
        ("data", data, "how fast batches are read"),
        ("step", step, "what one update costs"),
        ("cost", cost, "what whole runs would cost on many GPUs"),
        ("peers", peers, "ours beside other programs"),
    ):
        command = commands.add_parser(name, help=title, description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    parsed = parser.parse_args(arguments)
    parsed.run(parsed)


if __name__ == "__main__":
    main()
