"""A store that answers slowly, for benchmarks: local files after 50 ms, and all together at 100 MB/s.

It sleeps, so that waiting for it takes none of the processors that decode.
"""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, Final

import fsspec  # type: ignore[import-untyped]

SCHEME: Final = "slow"
LATENCY, RATE = 0.05, 100e6
"""Seconds before the first byte of each answer; bytes per second over all of them."""


@lru_cache(maxsize=64)
def _read(path: str) -> bytes:
    """In memory, so that the store itself costs little."""
    return Path("/", path).read_bytes()


class SlowStore(fsspec.AbstractFileSystem):  # type: ignore[misc]  # has no types
    """Objects are the files of this machine: ``slow://tmp/x`` is ``/tmp/x``."""

    protocol = SCHEME

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._lock = Lock()
        self._free_at = 0.0

    def _answer(self, size: int) -> None:
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic()) + size / RATE
            ready = self._free_at
        time.sleep(max(LATENCY, ready + LATENCY - time.monotonic()))

    def info(self, path: str, **settings: Any) -> dict[str, Any]:
        self._answer(0)
        return {"name": path, "size": len(_read(self._strip_protocol(path))), "type": "file"}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **settings: Any) -> bytes:
        data = _read(self._strip_protocol(path))[start:end]
        self._answer(len(data))
        return data


def register() -> None:
    """Make the scheme known."""
    fsspec.register_implementation(SCHEME, SlowStore, clobber=True)
