"""Memory that the C library hands out to what computes on a CPU."""

from __future__ import annotations

import ctypes
from typing import Final

M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3

MAPPED_BYTES: Final = 20 * 2**20
"""From here on a tensor has memory of its own, which was worth 0.6 GiB to text base; glibc takes 32 MiB at most."""


def keep_freed_memory() -> None:
    """Let glibc reuse freed memory instead of returning it to the system; other C libraries go on as they were.

    Otherwise the kernel maps every large activation anew and fills it with zeros first, which took a tenth to a quarter of the
    time of an update, and a twentieth of that of features. The largest are mapped all the same: they are few, and what they leave
    behind does not fit what comes next.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
        mallopt(M_TRIM_THRESHOLD, -1)  # never
