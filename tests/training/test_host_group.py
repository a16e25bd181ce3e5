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
import torch.distributed as dist
from fairseq2.gang import GangError

from d2v_plugin.training import host_group
from d2v_plugin.training.host_group import HostGroup, Timeouts

SHORT = timedelta(seconds=0.3)


def join(rank: int, folder: Path, act: Callable[[HostGroup], Any], missing: int) -> None:
    """In a process of its own: agree once, then act, except for the rank that is missing."""
    host_group._GRACE = SHORT  # type: ignore[misc]
    dist.init_process_group("gloo", rank=rank, world_size=3, store=dist.FileStore(str(folder / "store"), 3))
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


def save(hosts: HostGroup) -> None:
    hosts.gather(None, "save")


def step(hosts: HostGroup) -> None:
    for _ in range(2):
        hosts.any_before(False)


@pytest.mark.parametrize(("act", "missing", "phase"), [(save, 2, "save"), (save, 0, "save"), (step, 1, "step")])
def test_the_rank_that_does_not_answer_is_named(
    act: Callable[[HostGroup], Any], missing: int, phase: str, tmp_path: Path
) -> None:
    context = get_context("fork")
    ranks = [context.Process(target=join, args=(rank, tmp_path, act, missing)) for rank in range(3)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
        assert rank.exitcode == 0

    told = (tmp_path / f"{0 if missing else 1}.txt").read_text()
    assert told.startswith(f"rank {missing} did not answer for 0.005 minutes") and f"`gang.{phase}_timeout`" in told
