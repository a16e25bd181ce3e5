"""Output directories on stores: a verb writes into a local folder, whose files follow to the store while it runs and at its end.

Logs and tables grow line by line, which no store allows. What the directory holds is fetched first, so that a verb goes on where
it was; checkpoints alone go to the store at once (see :mod:`d2v_plugin.training.checkpoints`), and are not fetched.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Final

from d2v_plugin.cli.words import fail
from d2v_plugin.core.remote import RemotePath, place
from d2v_plugin.core.store import is_url

_SECONDS: Final = 30.0
"""Between two looks at what has changed."""

_VALUE_FLAGS: Final = ("--config-file", "--checkpoint-dir", "--resume")
_WRITERS: Final = ("train", "pretrain", "finetune", "evaluate", "predict", "extract", "inspect", "export")
_TRAINS: Final = ("train", "pretrain", "finetune")


@contextmanager
def staged_words(verb: str, words: Sequence[str]) -> Iterator[list[str]]:
    """Let a verb whose output directory is on a store write to a local folder; what it wrote is on the store at the end."""
    found = verb in _WRITERS and [
        index
        for index, word in enumerate(words)
        if not word.startswith("-") and is_url(word) and (index == 0 or words[index - 1] not in _VALUE_FLAGS)
    ]
    if not found:
        yield list(words)
        return
    from d2v_plugin.weights.run_folder import RunFolder  # takes a second, which a local directory need not wait for

    index, new = found[0], list(words)
    out = place(words[index])
    assert isinstance(out, RemotePath)
    trains, checkpoints = verb in _TRAINS, RunFolder(out).checkpoints
    if not trains and os.environ.get("WORLD_SIZE", "1") != os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")):
        fail(f"{out}: ranks on several machines need a file system that they share, to write to; name a folder on one.")
    with staged(out, skipped=checkpoints.name if trains else None) as folder:
        new[index] = str(folder)
        if trains and not any(word.partition("=")[0] == "--checkpoint-dir" for word in words):
            # Before `--config`, which takes all words that follow.
            new[index + 1 : index + 1] = ["--checkpoint-dir", str(checkpoints)]
        yield new


@contextmanager
def staged(out: RemotePath, *, skipped: str | None = None) -> Iterator[Path]:
    """A local folder that begins with what ``out`` holds, and whose files ``out`` holds at the end.

    The processes of a launcher share it; the last to leave removes it.

    :param skipped: a folder below that is not fetched.
    """
    try:
        out.check_writable()
    except OSError as ex:
        fail(f"{ex.filename}: {ex.strerror}.")
    launcher = os.getppid() if "LOCAL_WORLD_SIZE" in os.environ or "SLURM_PROCID" in os.environ else os.getpid()
    name = hashlib.sha256(f"{out} {launcher}".encode()).hexdigest()[:16]
    base = Path(tempfile.gettempdir(), f"d2v_out_{os.getuid()}_{name}")
    folder = base / out.name
    base.mkdir(mode=0o700, exist_ok=True)
    with (base / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            mirror = _Mirror(out, folder, skipped)
            if not folder.exists():
                mirror.fetch()
        except OSError as ex:
            shutil.rmtree(base, ignore_errors=True)
            fail(f"{ex.filename}: {ex.strerror}.")
        fcntl.flock(lock, fcntl.LOCK_SH)
        try:
            with mirror.following():
                yield folder
        finally:
            try:
                mirror.send()
            except OSError as ex:
                fail(f"{ex.filename}: {ex.strerror}. What is not there yet is in {folder}.", status=1, is_mine=True)
            if os.environ.get("RANK", "0") == "0":
                print(f"What was in {folder} is in {out}.", flush=True)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                pass  # others are not done
            else:
                shutil.rmtree(base, ignore_errors=True)


class _Mirror:
    """A folder on a store and its local copy, of which one process of this machine sends the changes."""

    def __init__(self, out: RemotePath, folder: Path, skipped: str | None) -> None:
        self._out = out
        self._folder = folder
        self._skipped = skipped
        self._sent: dict[str, tuple[int, int]] = {}

    def fetch(self) -> None:
        self._folder.mkdir()
        for name in self._out.find_files() if self._out.exists() else {}:
            if name.partition("/")[0] != self._skipped:
                (self._out / name).download(self._folder / name)
        self._sent = self._list()

    def send(self) -> None:
        """Write what has changed, manifests after what they name, and remove what is gone."""
        now = self._list()
        for name in sorted(now, key=lambda name: (name.endswith(".tsv"), name)):
            if self._sent.get(name) != now[name]:
                (self._out / name).upload(self._folder / name)
        for name in self._sent.keys() - now.keys():
            (self._out / name).unlink(missing_ok=True)
        self._sent = now

    @contextmanager
    def following(self) -> Iterator[None]:
        """Send changes from time to time; what fails is tried again."""
        stop = Event()

        def follow() -> None:
            while not stop.wait(_SECONDS):
                try:
                    self.send()
                except OSError as ex:
                    from d2v_plugin.core.log import log

                    log.warning("{}: {}. It is tried again.", ex.filename, ex.strerror)

        thread = Thread(target=follow, daemon=True)
        if os.environ.get("LOCAL_RANK", "0") == "0":
            thread.start()
        try:
            yield
        finally:
            stop.set()
            if thread.ident is not None:
                thread.join()

    def _list(self) -> dict[str, tuple[int, int]]:
        """Size and time of the last change of each file, by its path."""
        found = {}
        for path in sorted(self._folder.rglob("*")):
            if path.is_file() and path.name != ".lock" and not path.name.endswith(".tmp"):
                status = path.stat()
                found[path.relative_to(self._folder).as_posix()] = (status.st_size, status.st_mtime_ns)
        return found
