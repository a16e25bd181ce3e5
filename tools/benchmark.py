"""Benchmarks, one command each:

    python tools/benchmark.py data     how fast batches are read
    python tools/benchmark.py step     what one update costs

`--help` behind a command tells its options, the module of its name beside this file what it measures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # also in a mere checkout
sys.path.insert(0, str(Path(__file__).parent))

import d2v_plugin  # noqa: F401  # makes fairseq2 importable

# isort: split
import benchmark_data
import benchmark_step


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module, title in (
        ("data", benchmark_data, "how fast batches are read"),
        ("step", benchmark_step, "what one update costs"),
    ):
        command = commands.add_parser(name, help=title, description=module.__doc__)
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    parsed = parser.parse_args(arguments)
    parsed.run(parsed)


if __name__ == "__main__":
    main()
