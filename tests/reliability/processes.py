"""Runs the ``fairseq2`` command in processes of its own, forked from one that has imported everything already.

Real processes with ranks, signals and exit codes, in a second each: starting Python and its imports would take six.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        *("d2v_plugin", "fairseq2.recipe", "d2v_plugin.verbs.train.recipe", "d2v_plugin.cli.main", "processes"),
        # What a run imports when it comes to it, 1.3 s of 2.1 that a short one takes.
        *("d2v_plugin.cli.reading", "d2v_plugin.cli.redaction", "d2v_plugin.cli.unexpected", "d2v_plugin.cli.user_errors"),
        *("d2v_plugin.verbs.first_checks", "torch._dynamo", "torch.utils.tensorboard", "torcheval.metrics", "torchvision"),
    ]
)


class Ranks:
    """A command running on one or several ranks."""

    def __init__(
        self, words: Sequence[object], folder: Path, *, size: int, nodes: int = 1, environment: dict[str, str] | None = None
    ) -> None:
        """
        :param folder: where each rank's output goes.
        :param nodes: how many machines the ranks take themselves to be on.
        """
        folder.mkdir(parents=True, exist_ok=True)
        variables = {"OMP_NUM_THREADS": "1", "FAIRSEQ2_DEVICE": "cpu", "FAIRSEQ2_EXTENSION_TRACE": "1", **(environment or {})}
        if size > 1:
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_find_port())}
            variables |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size // nodes), **address}
        self._outputs = [folder / f"rank_{rank}.txt" for rank in range(size)]
        self.processes: list[BaseProcess] = []
        for rank, output in enumerate(self._outputs):
            ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank % (size // nodes))} if size > 1 else {}
            process = _CONTEXT.Process(target=run_command, args=([str(word) for word in words], variables | ranks, output))
            process.start()
            self.processes.append(process)

    def wait(self, seconds: float = 180) -> list[int]:
        """The exit statuses; -N = killed by signal N."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0, deadline - time.monotonic()))
        late = [process for process in self.processes if process.is_alive()]
        for process in late:
            process.kill()
            process.join()
        assert not late, f"still running after {seconds} s: {self.output(0)[-2000:]}"

        return [process.exitcode or 0 for process in self.processes]

    def send(self, number: signal.Signals, rank: int = 0) -> None:
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def output(self, rank: int = 0) -> str:
        """What a rank has printed and logged, without the line breaks of the log."""
        path = self._outputs[rank]

        return re.sub(r"\s+", " ", path.read_text()) if path.exists() else ""


def run_command(words: list[str], environment: dict[str, str], output: Path) -> None:
    """In the new process."""
    os.environ.update(environment)
    descriptor = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)

    from d2v_plugin.cli.main import main

    main(words)
    sys.stdout.flush()


def call(function: Callable[..., None], *args: object) -> BaseProcess:
    """Run a function of a module that the new process can import."""
    process = _CONTEXT.Process(target=function, args=args)
    process.start()

    return process


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.01)


def _find_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))

        return int(found.getsockname()[1])
