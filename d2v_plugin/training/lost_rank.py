"""One line from a rank that has lost another one, instead of the traceback of whatever it was sending at the moment."""

from __future__ import annotations

import re
from pathlib import Path

import torch.distributed as dist
from fairseq2.gang import GangError

from d2v_plugin.core.errors import causes
from d2v_plugin.weights.run_folder import RunFolder

# gloo's errors are mere RuntimeErrors: "[…/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4242".
_COMMUNICATION = re.compile(r"gloo|NCCL|Socket Timeout|Connection (closed|reset) by peer|Broken pipe", re.IGNORECASE)


def explain_lost_rank(ex: BaseException, rank: int, output_dir: Path | None) -> str | None:
    """Describe a failed communication; None if ``ex`` is something else.

    :param rank: the one that tells.
    :param output_dir: of the run.
    """
    leaf = _find_communication(ex)
    if leaf is None:
        return None
    logs = "its log" if output_dir is None else str(RunFolder(output_dir).logs / "rank_*.log")
    reason = re.sub(r"^\[[^\]]*\] *", "", str(leaf).strip().splitlines()[0]).rstrip(". ")

    return (
        f"rank {rank} has lost another process of this run, which ended, or did not answer for `gang.timeout` (15 minutes unless "
        f"set): {reason:.200}. Its own error stands above or in {logs}; if there is none, it was killed from outside, as when "
        "memory runs out. The same command continues from the last checkpoint."
    )


def is_timeout(ex: BaseException) -> bool:
    """Whether a communication waited too long for another rank."""
    leaf = _find_communication(ex)
    return leaf is not None and re.search(r"timed? ?out", str(leaf), re.IGNORECASE) is not None


def _find_communication(ex: BaseException) -> BaseException | None:
    """The failed communication that an error comes from."""
    return next((error for error in reversed([*causes(ex, contexts=True)]) if _is_communication(error)), None)


def _is_communication(ex: BaseException) -> bool:
    if isinstance(ex, GangError | dist.DistError):
        return True

    return isinstance(ex, RuntimeError) and _COMMUNICATION.search(str(ex)) is not None
