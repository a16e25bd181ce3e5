"""Agreements between the main threads of ranks, beside the devices' own communication."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, Literal, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from fairseq2.gang import Gang, GangError
from torch import Tensor

T = TypeVar("T")

Phase = Literal["start", "step", "save"]
"""What the ranks agree on: where to go on, whether to stop, or what was saved."""

_DOING: Final = {"start": "while the run started", "step": "between two updates", "save": "while a checkpoint was saved"}

# The first rank waits for the others and tells who is missing. The others, who wait for it, let it speak first.
_GRACE: Final = timedelta(seconds=10)


@dataclass(frozen=True)
class Timeouts:
    """How long a rank waits for the others, by phase."""

    start: timedelta = timedelta(minutes=15)
    step: timedelta = timedelta(minutes=15)
    save: timedelta = timedelta(minutes=15)


class HostGroup:
    """All ranks of a run, connected through their processors.

    On GPUs fairseq2's own groups answer through the device, which the host would have to wait for; here nothing does.
    """

    def __init__(self, gang: Gang, timeouts: Timeouts | None = None) -> None:
        """:param gang: all ranks. Of a group of one nothing is sent."""
        self.rank = gang.rank
        self.size = gang.size
        self._timeouts = timeouts or Timeouts()
        longest = max(self._timeouts.start, self._timeouts.step, self._timeouts.save) + 2 * _GRACE
        self._group = dist.new_group(backend="gloo", timeout=longest) if gang.size > 1 else None
        self._pending: tuple[dist.Work, Tensor] | None = None

    def any_before(self, flag: bool) -> bool:
        """Tell the others a flag, and learn whether one of the flags of the *previous* call was set.

        The answer is the same on all ranks. It was on its way since the previous call, so nobody waits for it; without other
        ranks it is the flag itself.

        :raises GangError: a rank is gone, or does not answer.
        """
        if self._group is None:
            return flag

        was_set = self.finish()
        tensor = torch.tensor([flag], dtype=torch.int32)
        with _translated():
            work = dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group, async_op=True)
        assert work is not None
        self._pending = (work, tensor)

        return was_set

    def finish(self) -> bool:
        """The answer that is still on its way, if any; to be called before the ranks part."""
        if self._pending is None:
            return False
        work, tensor = self._pending
        self._pending = None
        is_late = False
        try:
            with _translated():
                work.wait(self._timeouts.step)
        except GangError as ex:
            if not re.search(r"timed? ?out", str(ex), re.IGNORECASE):
                raise
            is_late = True
        if is_late:
            # Whoever still answers meets here.
            self._raise_late("step", self._meet(_GRACE) or "another rank")

        return bool(tensor.item())

    def gather(self, value: T, phase: Phase = "step") -> list[T]:
        """The values of all ranks, on all ranks, in their order. Also a barrier.

        :raises GangError: a rank is gone, or does not answer within the time of the phase; names it.
        """
        if self._group is None:
            return [value]
        if (late := self._meet(getattr(self._timeouts, phase))) is not None:
            self._raise_late(phase, late)
        values: list[object] = [None] * self.size
        with _translated():
            dist.all_gather_object(values, value, group=self._group)

        return cast("list[T]", values)

    def find_missing(self) -> str | None:
        """Tell which ranks do not come, after a communication of theirs has timed out; None = all came, or nobody can tell.

        :raises GangError: a rank is gone; the first one may have named another meanwhile.
        """
        return None if self._group is None else self._meet(_GRACE)

    def _meet(self, timeout: timedelta) -> str | None:
        """Wait for all ranks.

        :returns: those that do not come in time; None = all came.
        :raises GangError: a rank is gone.
        """
        try:
            with _translated():
                dist.monitored_barrier(self._group, timeout if self.rank == 0 else timeout + _GRACE, wait_all_ranks=True)
        except GangError as ex:
            late = re.search(r"ranks ([\d, ]+?) failed to pass", str(ex), re.IGNORECASE)
            if "closed" not in str(ex):
                late = late or re.search(r"send/recv from rank (0)", str(ex))
            if late is None:
                raise
            return f"rank {late[1].strip(' ,')}"

        return None

    def _raise_late(self, phase: Phase, who: str) -> NoReturn:
        """Not where the error of the communication is handled: the line of a lost rank is this one, not what it came from."""
        minutes = getattr(self._timeouts, phase).total_seconds() / 60
        raise GangError(f"{who} did not answer for {minutes:g} minutes {_DOING[phase]} (`gang.{phase}_timeout`)")


@contextmanager
def _translated() -> Iterator[None]:
    """Raise PyTorch's errors as fairseq2 knows them."""
    try:
        yield
    except RuntimeError as ex:
        raise GangError(f"Another rank is gone, or too slow: {ex}") from ex
