"""Lock of an output directory: two runs in one would mix their metrics and overwrite each other's checkpoints."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from pathlib import Path
from typing import Final

from fairseq2.recipe.error import RecipeError

from d2v_plugin.core.log import log

LOCK_FILE: Final = ".lock"

# The kernel lets go of a lock when any descriptor of its file is closed, so each file is opened once in a process.
_held: Final[dict[Path, int]] = {}


def lock_run(*folders: Path) -> None:
    """Take the locks of directories until this process ends, however it ends, or takes others: the kernel releases them.

    The first rank does it alone, since the ranks of a run share the directories.

    :raises RecipeError: another process has one.
    """
    # SLURM's own variable is all there is until fairseq2 has set the others.
    if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) != "0":
        return
    paths = {folder.absolute() / LOCK_FILE: folder for folder in folders}
    for path in _held.keys() - paths.keys():
        os.close(_held.pop(path))
    for path, folder in paths.items():
        if path not in _held or not path.exists():
            _lock(path, folder)


def _lock(path: Path, folder: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as ex:
        log.warning("{} cannot be locked against a second run: {}.", folder, ex.strerror or ex)
        return
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as ex:
        owner = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
        os.close(descriptor)
        if ex.errno in (errno.EACCES, errno.EAGAIN):
            raise RecipeError(
                f"{folder} belongs to a run that is going on ({owner}). Wait for it, stop it, or choose another output directory."
            ) from None
        log.warning("{} cannot be locked against a second run: {}.", folder, ex.strerror or ex)
        return
    _held[path] = descriptor
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    except OSError as ex:  # a full disk; the lock holds all the same
        log.debug("{}: {}", path, ex)
