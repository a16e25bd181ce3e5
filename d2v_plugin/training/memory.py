"""The memory that training takes, said once its first updates have shown it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, final

import torch
from fairseq2.device import Device
from fairseq2.logging import log
from typing_extensions import override

from d2v_plugin.training.observers import Observer

_UPDATES: Final = 3
"""The optimizer has its moments after the first, and caches are filled."""


@final
class MemoryObserver(Observer):
    """Logs the most memory in use after three updates of this process; does not wait for the device."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._left = _UPDATES

    @override
    def after_update(self, step_nr: int, *, norm: float, losses: Sequence[float], skipped: bool) -> None:
        self._left -= 1
        if self._left == 0 and (peak := read_peak(self._device)):
            what = "the process" if self._device.type == "cpu" else f"{self._device}"
            log.info("Memory of {} at the most, after {} updates: {:.2f} GiB.", what, _UPDATES, peak / 2**30)


def read_peak(device: Device) -> int:
    """The most bytes in use so far: of a GPU by PyTorch, else of the process; 0 = unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return 0

    return 0 if found is None else int(found[1]) << 10
