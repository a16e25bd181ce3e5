"""One side of a row of `python -m tools.benchmark peers`: a process that works when it is told to, and says what it took.

    python -m tools.benchmark.peer_side MODULE SETTING_AS_JSON

It reads lines: `run` does the work once, `outputs FILE` saves what it computed, `end` tells the peak of memory. `MODULE` has a
function `begin` that takes the setting; nothing else of this package is imported for it, so that a peer pays for nothing of ours.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

Side = Literal["ours", "theirs"]


@dataclass(frozen=True)
class Setting:
    """What a side is to do."""

    row: str
    side: Side
    precision: str
    threads: int
    tiny: bool
    """Models of a few parameters, for tests."""

    folder: str
    """Both sides share it; theirs begins first."""

    original: str | None = None
    """A checkout of fairseq."""


@dataclass(frozen=True)
class Work:
    """What a process does again and again."""

    run: Callable[[], object]

    infers: bool = False
    """No gradients are needed."""

    outputs: Callable[[], Tensor] | None = None
    """What both sides must agree on; None = each has weights of its own."""


def serve(begin: Callable[[Setting], Work], setting: Setting, answer: Callable[[Any], None]) -> None:
    """Do what lines of the standard input say."""
    torch.set_num_threads(setting.threads)
    torch.manual_seed(1)
    work = begin(setting)
    is_half = setting.precision == "bf16"
    with torch.inference_mode(work.infers), torch.autocast("cpu", torch.bfloat16, enabled=is_half, cache_enabled=not work.infers):
        work.run()
        answer({"compares": work.outputs is not None})
        for line in sys.stdin:
            word, _, file = line.strip().partition(" ")
            if word == "run":
                start, used = time.perf_counter(), time.process_time()
                work.run()
                answer({"wall": time.perf_counter() - start, "cpu": time.process_time() - used})
            elif word == "outputs" and work.outputs is not None:
                torch.save(work.outputs().float(), file)
                answer({})
            else:
                break
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    answer({"memory": int(status["VmHWM"].split()[0]) / 2**20})


def main(module: str, setting: str) -> None:
    stdout = sys.stdout

    def answer(found: Any) -> None:
        print(json.dumps(found), file=stdout, flush=True)

    with redirect_stdout(sys.stderr):  # libraries may print
        serve(importlib.import_module(module).begin, Setting(**json.loads(setting)), answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
