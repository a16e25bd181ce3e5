"""Stopping on request: the ranks agree on the update, one checkpoint is written, and the process ends with status 0.

fairseq2 0.8.1 only knows SIGUSR1, asks each rank for itself, and ignores the request where ``regime.num_steps`` is set.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from threading import Thread
from typing import Final, NoReturn, final

import fairseq2.recipe  # noqa: F401  # fairseq2.trainer cannot be imported before it
from fairseq2.datasets import DataReader
from fairseq2.gang import GangError, Gangs
from fairseq2.task import Task as Runnable
from fairseq2.task import TaskStopException
from fairseq2.trainer import Trainer
from typing_extensions import override

from d2v_plugin.core.batch import Batch
from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.core.fairseq2_private import save_checkpoint
from d2v_plugin.core.log import log
from d2v_plugin.core.text import print_unwrapped
from d2v_plugin.data.bad_samples import BadSamplesError
from d2v_plugin.data.composed_readers import WrappedReader, stop_search
from d2v_plugin.data.reader import SearchStoppedError
from d2v_plugin.training.checkpoints.manager import VerifiedCheckpointManager
from d2v_plugin.training.host_group import HostGroup
from d2v_plugin.training.lost_rank import is_timeout
from d2v_plugin.training.observers import Observer
from d2v_plugin.training.parent_death import stop_without_parent
from d2v_plugin.weights.run_folder import step_folder

SIGNALS: Final = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

# torchrun passes on what the terminal or the scheduler has sent to the workers already; that is no second request.
ECHO_SECONDS: Final = 1.0


@final
class StopRequest:
    """Request to stop this rank, made by a signal or by :meth:`make`."""

    def __init__(self, on_first: Callable[[], None] = lambda: None) -> None:
        """:param on_first: is called, in any thread, when a stop is asked for."""
        self.reason: str | None = None
        self._time = 0.0
        self._on_first = on_first

    def make(self, reason: str) -> bool:
        """Ask for a stop.

        :returns: False if it had been asked for some time ago.
        """
        if self.reason is not None:
            return time.monotonic() - self._time < ECHO_SECONDS
        self.reason, self._time = reason, time.monotonic()
        self._on_first()

        return True

    @contextmanager
    def made_by_signals(self) -> Iterator[None]:
        """Turn signals into requests; a second one ends the process at once, whatever it is doing.

        Python runs signal handlers between instructions of the main thread, which may be waiting for another rank for a long
        time. So a thread of its own listens on the wake-up descriptor, to which the interpreter writes the number at once.
        """
        listening, speaking = socket.socketpair()
        speaking.setblocking(False)
        thread = Thread(target=self._listen, args=(listening,), name="stop-signals", daemon=True)
        thread.start()
        handlers = {number: signal.signal(number, _ignore) for number in SIGNALS}
        descriptor = signal.set_wakeup_fd(speaking.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(descriptor)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            speaking.close()
            thread.join()
            listening.close()

    def _listen(self, listening: socket.socket) -> None:
        while received := listening.recv(1):
            number = received[0]
            if number not in SIGNALS:
                continue
            name = signal.Signals(number).name
            first = self.reason is None
            if not self.make(name):
                os.write(2, f"{name}: leaving at once, without a checkpoint.\n".encode())
                os._exit(128 + number)
            if first:
                log.warning("{}: stopping after this update, with a checkpoint; once more leaves at once.", name)


def _ignore(number: int, frame: object) -> None:
    """Exists so that the interpreter does not act on a signal itself."""


@final
class StoppableTask(Runnable):
    """Trains up to the last update, or up to the one after which the ranks agreed to stop."""

    def __init__(
        self,
        create_trainer: Callable[[DataReader[Batch]], Trainer],
        reader: DataReader[Batch],
        checkpoints: VerifiedCheckpointManager,
        observers: Sequence[Observer],
        gangs: Gangs,
        hosts: HostGroup,
    ) -> None:
        """
        :param create_trainer: makes the trainer that reads its batches from what it is given.
        :param observers: are told of the end.
        """
        self._trainer = create_trainer(_WatchedReader(reader, self._between_updates, self._leave_search))
        self._checkpoints = checkpoints
        self._observers = observers
        self._gangs = gangs
        self._hosts = hosts
        self._request = StopRequest(partial(stop_search, reader))
        checkpoints.follow(self._trainer)

    @override
    def run(self) -> None:
        """
        :raises TaskStopException: the run was stopped; fairseq2's runner ends with status 0 then.
        :raises CheckpointError: what the last checkpoint should hold is not finite.
        :raises GangError: a rank did not answer while an update was computed; names it.
        """
        with self._request.made_by_signals():
            stop_without_parent()
            self._train()
        if (failure := self._checkpoints.find_failure(self.step_nr)) is not None:
            if failure.is_fatal:
                raise CheckpointError(str(failure))
            # A full disk ends no run, also not at its end; but nothing may look as if the run's result were there.
            if self._gangs.root.rank == 0:
                print_unwrapped(f"Not finished: {self.step_nr:,} updates are done, but not kept, and not summarized. {failure}")
            return
        for observer in self._observers:
            observer.at_end(self.step_nr)

    def _train(self) -> None:
        try:
            return self._trainer.run()
        except Exception as ex:
            if not is_timeout(ex):
                raise
            error = ex
        # The devices' communication does not say for whom it waited.
        if (late := self._hosts.find_missing()) is not None:
            raise GangError(f"{late} did not take part in computing an update (`gang.timeout`)")
        raise error

    def _between_updates(self) -> None:
        self._checkpoints.finish_loading()
        if not self._hosts.any_before(self._request.reason is not None):
            return

        self._stop(self._hosts.gather(self._request.reason))

    def _stop(self, reasons: Sequence[str | None]) -> NoReturn:
        step_nr = self._trainer.step_nr
        self._save_once(step_nr)
        if self._gangs.root.rank == 0:
            asked = ", ".join(f"{reason} at rank {rank}" for rank, reason in enumerate(reasons) if reason is not None)
            saved = f"saved as {step_folder(self._checkpoints.directory, step_nr)}" if step_nr else "nothing to save"
            print_unwrapped(f"Stopped after update {step_nr:,} ({asked}): {saved}. The same command again goes on from there.")
        self._gangs.close()

        raise TaskStopException()

    def _leave_search(self) -> NoReturn:
        """Stop where there is nothing to compute the next update with."""
        if self._hosts.size == 1:
            self._stop([self._request.reason])
        raise BadSamplesError(
            f"{self._request.reason}: stopped without a checkpoint, since nothing of what rank {self._hosts.rank} read could be "
            "used, and the others wait for its part of the update. The same command again goes on from the last checkpoint."
        )

    def _save_once(self, step_nr: int) -> None:
        """Save this update, unless the regime has had it saved."""
        self._checkpoints.maybe_complete_save_operation(blocking=True)
        if step_nr and step_nr not in self._checkpoints.get_step_numbers():
            # Metrics stay unpublished and go into it.
            save_checkpoint(self._trainer)
            if (failure := self._checkpoints.find_failure(step_nr)) is not None:
                raise CheckpointError(str(failure))

    @override
    def request_stop(self) -> None:
        self._request.make("a request")

    @override
    def close(self) -> None:
        self._trainer.close()

    @property
    @override
    def step_nr(self) -> int:
        return self._trainer.step_nr


@final
class _WatchedReader(WrappedReader[Batch]):
    """Training batches. fairseq2's trainer asks for them between two updates, once and on all ranks alike; nothing else of it
    tells that."""

    def __init__(
        self, reader: DataReader[Batch], between_updates: Callable[[], None], leave_search: Callable[[], NoReturn]
    ) -> None:
        super().__init__(reader)
        self._between_updates = between_updates
        self._leave_search = leave_search

    @override
    def __next__(self) -> list[Batch]:
        self._between_updates()
        try:
            return super().__next__()
        except SearchStoppedError:
            self._leave_search()
