"""Agreements between the main threads of ranks, beside the devices' own communication."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from fairseq2.gang import Gang, GangError
from torch import Tensor

T = TypeVar("T")


class HostGroup:
    """All ranks of a run, connected through their processors.

    On GPUs fairseq2's own groups answer through the device, which the host would have to wait for; here nothing does.
    """

    def __init__(self, gang: Gang) -> None:
        """:param gang: all ranks. Of a group of one nothing is sent."""
        self.rank = gang.rank
        self.size = gang.size
        self._group = dist.new_group(backend="gloo") if gang.size > 1 else None
        self._pending: tuple[dist.Work, Tensor] | None = None

    def any_before(self, flag: bool) -> bool:
        """Tell the others a flag, and learn whether one of the flags of the *previous* call was set.

        The answer is the same on all ranks. It was on its way since the previous call, so nobody waits for it; without other
        ranks it is the flag itself.

        :raises GangError: a rank is gone.
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
        with _translated():
            work.wait()

        return bool(tensor.item())

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, on all ranks, in their order. Also a barrier.

        :raises GangError: a rank is gone.
        """
        if self._group is None:
            return [value]
        values: list[object] = [None] * self.size
        with _translated():
            dist.all_gather_object(values, value, group=self._group)

        return cast("list[T]", values)


@contextmanager
def _translated() -> Iterator[None]:
    """Raise PyTorch's errors as fairseq2 knows them."""
    try:
        yield
    except RuntimeError as ex:
        raise GangError(f"Another rank is gone, or too slow: {ex}") from ex
