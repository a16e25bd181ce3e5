"""One line from a rank that has lost another one, instead of the traceback of whatever it was sending at the moment."""

from __future__ import annotations

import re
from pathlib import Path

import torch.distributed as dist
from fairseq2.gang import GangError

# gloo's errors are mere RuntimeErrors: "[…/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4242".
_COMMUNICATION = re.compile(r"gloo|NCCL|Socket Timeout|Connection (closed|reset) by peer|Broken pipe", re.IGNORECASE)


def explain_lost_rank(ex: BaseException, rank: int, output_dir: Path | None) -> str | None:
    """Describe a failed communication; None if ``ex`` is something else.

    :param rank: the one that tells.
    :param output_dir: of the run.
    """
    first = _first_failure(ex)
    if first is None:
        return None
    logs = "its log" if output_dir is None else str(output_dir / "logs" / "rank_*.log")
    reason = re.sub(r"^\[[^\]]*\] *", "", str(first).strip().splitlines()[0]).rstrip(". ")

    return (
        f"rank {rank} has lost another process of this run, which ended, or did not answer for `gang.timeout` (15 minutes unless "
        f"set): {reason:.200}. Its own error stands above or in {logs}; if there is none, it was killed from outside, as when "
        "memory runs out. The same command continues from the last checkpoint."
    )


def _first_failure(ex: BaseException | None) -> BaseException | None:
    first = None
    while ex is not None:
        if _is_communication(ex):
            first = ex
        ex = ex.__cause__ or ex.__context__

    return first


def _is_communication(ex: BaseException) -> bool:
    if isinstance(ex, GangError | dist.DistError):
        return True

    return isinstance(ex, RuntimeError) and _COMMUNICATION.search(str(ex)) is not None
