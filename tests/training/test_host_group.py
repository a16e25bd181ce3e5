"""Ranks that wait for each other say for whom, and for how long."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fairseq2.gang import GangError

from d2v_plugin.training import host_group
from d2v_plugin.training.host_group import HostGroup, Timeouts
from d2v_plugin.training.lost_rank import explain_lost_rank
from d2v_plugin.training.stopping import StoppableTask

SHORT = timedelta(seconds=0.3)


def join(rank: int, folder: Path, act: Callable[[HostGroup], Any], missing: int) -> None:
    """In a process of its own: agree once, then act, except for the rank that is missing."""
    host_group._GRACE = SHORT  # type: ignore[misc]
    dist.init_process_group("gloo", timeout=SHORT, rank=rank, world_size=3, store=dist.FileStore(str(folder / "store"), 3))
    hosts = HostGroup(SimpleNamespace(rank=rank, size=3), Timeouts(SHORT, SHORT, SHORT))  # type: ignore[arg-type]
    assert hosts.gather(rank, "start") == [0, 1, 2]
    if rank == missing:
        while not (folder / "told").exists():
            pass
        os._exit(0)
    try:
        act(hosts)
    except GangError as ex:
        (folder / f"{rank}.txt").write_text(str(ex))
        if rank == (0 if missing else 1):
            (folder / "told").touch()
    os._exit(0)


def run_ranks(act: Callable[[HostGroup], Any], missing: int, folder: Path) -> str:
    """:returns: what the first of the others says."""
    context = get_context("fork")
    ranks = [context.Process(target=join, args=(rank, folder, act, missing)) for rank in range(3)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
        assert rank.exitcode == 0

    return (folder / f"{0 if missing else 1}.txt").read_text()


def save(hosts: HostGroup) -> None:
    hosts.gather(None, "save")


def step(hosts: HostGroup) -> None:
    for _ in range(2):
        hosts.any_before(False)


def update(hosts: HostGroup) -> None:
    """As the gradients are averaged, in a group of their own."""

    class Trainer:
        def run(self) -> None:
            dist.all_reduce(torch.zeros(1))

    task = StoppableTask.__new__(StoppableTask)
    task._trainer, task._hosts = Trainer(), hosts  # type: ignore[assignment]
    task._train()


@pytest.mark.parametrize("missing", [0, 1])
def test_the_rank_that_hangs_in_an_update_is_named(missing: int, tmp_path: Path) -> None:
    told = run_ranks(update, missing, tmp_path)

    assert told == f"rank {missing} did not take part in computing an update (`gang.timeout`)"
    line = explain_lost_rank(GangError(told), 2, None)
    assert line is not None and told in line


@pytest.mark.parametrize(("act", "missing", "phase"), [(save, 2, "save"), (save, 0, "save"), (step, 1, "step")])
def test_the_rank_that_does_not_answer_is_named(
    act: Callable[[HostGroup], Any], missing: int, phase: str, tmp_path: Path
) -> None:
    told = run_ranks(act, missing, tmp_path)

    assert told.startswith(f"rank {missing} did not answer for 0.005 minutes") and f"`gang.{phase}_timeout`" in told
