"""Batches copied to a GPU ahead: those of the next update while it computes this one."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from fairseq2.datasets import DataReader
from fairseq2.device import Device
from typing_extensions import override

from d2v_plugin.core.batch import Batch
from d2v_plugin.data.composed_readers import WrappedReader


def copy_ahead(reader: DataReader[Batch], device: Device) -> DataReader[Batch]:
    """A training reader whose batches are on the device; the same reader where there is nothing to copy."""
    return AheadReader(reader, device) if device.type == "cuda" else reader


@final
class AheadReader(WrappedReader[Batch]):
    """Endless batches, read and copied one update ahead on a stream of their own; the state is that of what was handed out.

    The host memory of a copy is PyTorch's, which does not use it again before the copy is done (:meth:`Batch.pin`).
    """

    def __init__(self, reader: DataReader[Batch], device: Device) -> None:
        super().__init__(reader)
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._copied: Callable[[], list[Batch]] | None = None
        self._state: dict[str, object] = {}

    @override
    def __next__(self) -> list[Batch]:
        take = self._copied or self._copy()
        batches = take()
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for batch in batches:
            batch.record_stream(current)
        self._copied = self._copy()

        return batches

    def _copy(self) -> Callable[[], list[Batch]]:
        """Read and queue the copies of an update; a fault is kept until its turn, so that the update before is computed."""
        self._state = self._reader.state_dict()
        try:
            batches = super().__next__()
        except Exception as ex:
            fault = ex

            def give_up() -> list[Batch]:
                raise fault

            return give_up
        with torch.cuda.stream(self._stream):
            for batch in batches:
                batch.to(self._device, non_blocking=True)

        return lambda: batches

    @override
    def reset(self) -> None:
        super().reset()
        self._copied = None

    @override
    def state_dict(self) -> dict[str, object]:
        return self._reader.state_dict() if self._copied is None else self._state

    @override
    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        super().load_state_dict(state_dict)
        self._copied = None
