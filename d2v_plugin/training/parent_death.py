"""End of workers whose torchrun is gone: nobody else would end them, and they would keep their GPUs."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

from d2v_plugin.core.log import log

_PR_SET_PDEATHSIG: Final = 1


def stop_without_parent() -> None:
    """Let the kernel send SIGTERM when torchrun dies, by ``kill -9`` or by a signal that it does not handle, such as SIGUSR1.

    The workers then stop as on any SIGTERM: with a checkpoint. Without torchrun nothing happens, since a run may outlive the
    shell that started it.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    parent = os.getppid()
    try:
        failed = ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    except (OSError, AttributeError):
        failed = True
    if failed:
        log.warning("The kernel does not tell when torchrun dies; end this process yourself then.")
    elif os.getppid() != parent:
        # It died in between.
        os.kill(os.getpid(), signal.SIGTERM)
