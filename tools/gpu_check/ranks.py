"""Two processes on one GPU, as far as they go: NCCL may refuse it, gloo computes reductions through the host."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from d2v_plugin.cli.main import main
from tools.gpu_check.driver import ROOT, Options
from tools.gpu_check.exactness import PROCESSES, QUIET, TINY, find_difference, name_device, read_losses, train
from tools.gpu_check.steps import Findings

UPDATES = 3
RECIPE = ROOT / "recipes" / "demo" / "digits.yaml"
# With so large an epsilon an update is smooth in the gradient; see tests/distributed/test_ddp.py.
CHANGES = ("trainer.mixed_precision.mode=off", "optimizer.config.eps=1.0")


def check_ranks(options: Options, findings: Findings) -> None:
    """Losses of two processes beside those of one, or the end of what they said."""
    cases = [("gloo", "ddp")] if options.tiny else [("nccl", "ddp"), ("gloo", "ddp"), ("gloo", "fsdp")]
    runs = options.out / "runs"
    pairs = {case: start_pair(*case, runs / "_".join(case), options) for case in cases}  # side by side
    one = train(RECIPE, runs / "one", UPDATES, options, *CHANGES)
    for (backend, parallelism), processes in pairs.items():
        statuses = [wait_or_kill(process, 300 if options.tiny else 40) for process in processes]
        out = runs / f"{backend}_{parallelism}"
        if any(statuses):
            log = out.with_suffix(".log").read_text(errors="replace").splitlines()
            findings[f"{parallelism} over {backend}"] = {"statuses": statuses, "log": log[-8:]}
        else:
            findings[f"{parallelism} over {backend}"] = {"difference from one process": find_difference(one, read_losses(out))}


def start_pair(backend: str, parallelism: str, out: Path, options: Options) -> list[BaseProcess]:
    """Start two processes that have imported everything already."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    variables = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    variables |= {"OMP_NUM_THREADS": "1", "FAIRSEQ2_DEVICE": name_device(options.device)}
    length = [f"regime.num_steps={UPDATES}", f"regime.checkpoint_every_n_steps={UPDATES}"]
    changes = [*QUIET, *(TINY if options.tiny else ()), *CHANGES, *length, f"trainer.data_parallelism={parallelism}"]
    words = ["recipe", "train", "--config-file", str(RECIPE), str(out), "--config", *changes]
    out.parent.mkdir(parents=True, exist_ok=True)
    processes: list[BaseProcess] = []
    for rank in ("0", "1"):
        own = {**variables, "RANK": rank, "LOCAL_RANK": rank}
        processes.append(PROCESSES.Process(target=run_rank, args=(backend, words, own, out.with_suffix(".log"))))
        processes[-1].start()

    return processes


def run_rank(backend: str, words: Sequence[str], variables: Mapping[str, str], log: Path) -> None:
    """In the new process."""
    os.environ.update(variables)
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if backend == "gloo":
        take_gloo()
    main(list(words))


def take_gloo() -> None:
    """Make fairseq2, which takes NCCL for GPUs, take gloo."""
    initialize = torch.distributed.init_process_group

    def initialize_gloo(backend: str, *, pg_options: object, **options: Any) -> None:
        options.pop("device_id", None)
        initialize("gloo", **options)

    torch.distributed.init_process_group = initialize_gloo  # type: ignore[assignment]


def wait_or_kill(process: BaseProcess, seconds: float) -> int:
    """The exit status; a process that hangs is killed."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()

    return process.exitcode or 0
