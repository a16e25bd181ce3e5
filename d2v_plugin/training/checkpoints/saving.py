"""A checkpoint being written: what it is made of, and how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from fairseq2.gang import Gangs

from d2v_plugin.core.storage import Record, put_in_place, write_record
from d2v_plugin.training.checkpoints.state_files import Written


@dataclass(frozen=True)
class Saving:
    """A checkpoint being written."""

    step_nr: int
    result: Future[Written]

    saved: Callable[[], None]
    """To be called when it is complete."""

    unpublished: int
    """Of how many updates it holds metrics that are not published when it is complete."""


@dataclass(frozen=True)
class Failure:
    """A checkpoint that could not be written."""

    step_nr: int

    reason: str
    """A sentence or two."""

    advice: str = "Make room"
    """What to do before the command is repeated."""

    is_fatal: bool = False
    """Whether there is nothing to be saved, wherever there were room for it."""

    last: str = "none"
    """The last update that is saved."""

    def __str__(self) -> str:
        return (
            f"The last checkpoint, of step {self.step_nr}, could not be written: {self.reason} {self.advice} and repeat the "
            f"command; it goes on from step {self.last}."
        )


def find_failure(step_nr: int, parts: Sequence[Written]) -> Failure | None:
    """Tell, the same on all ranks, whether one of them could not write its part.

    :param parts: of all ranks.
    """
    if (error := next((part.error for part in parts if part.error is not None), None)) is not None:
        return Failure(step_nr, error)
    if not (names := [name for part in parts for name in part.not_finite]):
        return None
    more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""

    return Failure(
        step_nr,
        f"`{names[0]}`{more} of the run is not finite, and nothing could go on from there.",
        "Lower `optimizer.config.lr`, lengthen the warm-up or set `trainer.max_grad_norm`",
        is_fatal=True,
    )


def finish(saving: Saving, parts: Sequence[Written], gangs: Gangs, aside: Path, folder: Path) -> None:
    """Write the record of a checkpoint that all ranks have written, and give it its name.

    :raises OSError: it cannot be written.
    """
    files = {name: record for part in parts for name, record in part.files.items()}
    info = {
        "step": saving.step_nr,
        "written": time.time(),
        "ranks": gangs.root.size,
        "shards": gangs.sdp.size,
        "readers": gangs.dp.size,
        "unpublished": saving.unpublished,
    }
    write_record(aside, Record(files, info))
    put_in_place(aside, folder)
