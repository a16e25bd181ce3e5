"""Checkpoints of a run, made for machines that vanish and disks that fill.

They are written aside with a record of hashes, verified before they are used, and resumed on any number of ranks.
``OUT/checkpoints/step_N`` has the layout of fairseq2's own checkpoints, so that its loaders read the model, plus the record
(``complete.json``, see :mod:`d2v_plugin.core.storage`). Everything in it is plain data and tensors: reading it executes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import final

import fairseq2.recipe  # noqa: F401  # fairseq2.trainer cannot be imported before it
from fairseq2.checkpoint import CheckpointManager, CheckpointReadyCallback, CheckpointSavedCallback
from fairseq2.gang import Gangs
from fairseq2.trainer import Trainer
from fairseq2.typing import Stateful
from fairseq2.utils.threading import ThreadPool
from typing_extensions import override

from d2v_plugin.core.fairseq2_private import count_unpublished, restore_unpublished, set_rates
from d2v_plugin.core.log import log
from d2v_plugin.core.storage import remove, write_atomically
from d2v_plugin.training.checkpoints.restore import CheckpointLoader
from d2v_plugin.training.checkpoints.resume import Resume, clear_the_way, find_resume_point
from d2v_plugin.training.checkpoints.retention import find_stale_steps, remove_step, strip_to_model
from d2v_plugin.training.checkpoints.saving import Failure, Saving, find_failure, finish
from d2v_plugin.training.checkpoints.state_files import Written, describe_os_error, share_states, to_plain, write_states
from d2v_plugin.training.host_group import HostGroup
from d2v_plugin.weights.run_folder import list_steps, read_scores, score_file, step_folder, unfinished_folder


@final
class VerifiedCheckpointManager(CheckpointManager):
    """Writes checkpoints aside, with a record of their files; resumes only from one whose files are those of its record.

    A checkpoint that cannot be written, because the disk is full or gone, or weights are not finite, costs a warning: the
    previous one stays, training goes on, and the next save is tried when it is due.
    """

    is_held: bool = False
    """Whether the last update was skipped: a checkpoint that an interval asks for is left out then, and none is deleted."""

    def __init__(
        self,
        directory: Path,
        gangs: Gangs,
        hosts: HostGroup,
        threads: ThreadPool,
        *,
        resume: Resume | None = None,
        keep_hours: float | None = None,
        publishes: Callable[[int], bool] = lambda step_nr: False,
        last_step: int | None = None,
    ) -> None:
        """
        :param directory: the run's checkpoints, where all ranks see them.
        :param keep_hours: younger checkpoints are not deleted.
        :param publishes: whether metrics are published, and start anew, after the checkpoint of an update.
        :param last_step: the update after which the run ends, which is saved in any case.
        :raises CheckpointError: as for :func:`find_resume_point`.
        """
        self.directory = directory
        self._gangs = gangs
        self._hosts = hosts
        self._threads = threads
        self._resume = resume or Resume()
        self._keep_hours = keep_hours
        self._publishes = publishes
        self._last_step = last_step
        self._saving: Saving | None = None
        self._failed: Failure | None = None
        self._trainer: Trainer | None = None
        self._unpublished: tuple[int, dict[str, object]] | None = None  # of a loaded checkpoint: of how many updates, and metrics
        self._must_set_rates = False
        self.resume_point = find_resume_point(self._resume, directory, hosts)
        clear_the_way(self._resume, self.resume_point, directory, hosts)

    def follow(self, trainer: Trainer) -> None:
        """Know the trainer whose checkpoints these are: its metrics may be unpublished when it saves or loads one."""
        self._trainer = trainer

    # Saving

    @override
    def save_checkpoint(
        self,
        step_nr: int,
        trainer: Stateful,
        model: Stateful,
        optimizer: Stateful,
        data_reader: Stateful,
        *,
        ready_callback: CheckpointReadyCallback | None = None,
        saved_callback: CheckpointSavedCallback | None = None,
        blocking: bool = False,
    ) -> None:
        states = share_states(self._gangs, model, trainer=trainer, optimizer=optimizer, reader=data_reader)
        self._save(step_nr, states, ready_callback, saved_callback, blocking)

    @override
    def save_model_only(
        self,
        step_nr: int,
        model: Stateful,
        *,
        ready_callback: CheckpointReadyCallback | None = None,
        saved_callback: CheckpointSavedCallback | None = None,
        blocking: bool = False,
    ) -> None:
        self._save(step_nr, share_states(self._gangs, model), ready_callback, saved_callback, blocking)

    def _save(
        self,
        step_nr: int,
        states: Mapping[str, Stateful],
        ready: CheckpointReadyCallback | None,
        saved: CheckpointSavedCallback | None,
        blocking: bool,
    ) -> None:
        self.maybe_complete_save_operation(blocking=True)
        if self.is_held and not blocking and step_nr != self._last_step:
            if self._hosts.rank == 0:
                log.warning("No checkpoint of step {}, which was skipped; the next is written when it is due.", step_nr)
            return

        aside = unfinished_folder(self.directory, step_nr)
        if self._hosts.rank == 0:
            remove(aside)
        self._hosts.gather(None, "save")

        # What is written later must not change meanwhile.
        plain = {name: to_plain(state.state_dict(), copy=not blocking, name=name) for name, state in states.items()}
        if ready is not None:
            ready(step_nr, blocking)
        call = partial(saved, step_nr, blocking) if saved is not None else lambda: None
        unpublished = 0 if self._publishes(step_nr) or self._trainer is None else count_unpublished(self._trainer)
        self._saving = Saving(step_nr, self._threads.queue(write_states, plain, aside), call, unpublished)
        if blocking:
            self.maybe_complete_save_operation(blocking=True)

    @override
    def maybe_complete_save_operation(self, *, blocking: bool = False) -> bool | None:
        if self._saving is None:
            return None
        saving = self._saving
        if not blocking and not all(self._hosts.gather(saving.result.done(), "save")):
            return False
        self._saving = None
        self._complete(saving, saving.result.result())

        return True

    def _complete(self, saving: Saving, written: Written) -> None:
        """Give a checkpoint its name, if all ranks have written their part; on all ranks."""
        parts = self._hosts.gather(written, "save")
        aside = unfinished_folder(self.directory, saving.step_nr)
        self._failed = find_failure(saving.step_nr, parts)
        if self._failed is None:
            put_in_place = partial(finish, saving, parts, self._gangs, aside, step_folder(self.directory, saving.step_nr))
            error = self._on_first_rank(put_in_place)
            self._failed = None if error is None else Failure(saving.step_nr, error)
        if self._failed is None:
            saving.saved()
            return

        self._on_first_rank(partial(remove, aside))
        if self._hosts.rank == 0:
            log.warning(
                "The checkpoint of step {} could not be written: {} The previous one (step {}) is intact; the next is tried when "
                "it is due.", saving.step_nr, self._failed.reason, self._describe_last()
            )  # fmt: skip

    def find_failure(self, step_nr: int) -> Failure | None:
        """Why the checkpoint of this update, the run's last, could not be written; None = it was."""
        failed = self._failed
        return None if failed is None or failed.step_nr != step_nr else replace(failed, last=self._describe_last())

    @property
    @override
    def is_saving(self) -> bool:
        return self._saving is not None

    # Loading

    @override
    def load_trainer_state(self, step_nr: int, trainer: Stateful) -> None:
        metrics = self._loader.load_trainer(trainer)
        if self._loader.num_unpublished > 0:
            self._unpublished = (self._loader.num_unpublished, metrics)
        self._must_set_rates = self._resume.extend_schedule

    @override
    def load_model_state(self, step_nr: int, model: Stateful) -> None:
        self._loader.load_model(model)

    @override
    def load_optimizer_state(self, step_nr: int, optimizer: Stateful) -> None:
        self._loader.load_optimizer(optimizer)

    @override
    def load_data_reader_state(self, step_nr: int, data_reader: Stateful) -> None:
        self._loader.load_reader(data_reader)

    def finish_loading(self) -> None:
        """Give the trainer what fairseq2 leaves out or resets after it has loaded a checkpoint; before its next update."""
        if self._trainer is not None and self._must_set_rates:
            set_rates(self._trainer)
        if self._trainer is not None and self._unpublished is not None:
            restore_unpublished(self._trainer, *self._unpublished)
        self._must_set_rates, self._unpublished = False, None

    @property
    def _loader(self) -> CheckpointLoader:
        assert self.resume_point is not None
        return CheckpointLoader(self.resume_point, self._gangs, self._resume)

    # Keeping

    @override
    def save_score(self, step_nr: int, score: float) -> None:
        if not math.isfinite(score):
            if self._hosts.rank == 0:
                log.warning("The score of step {} is {}; it counts for nothing.", step_nr, score)
            return
        write = partial(write_atomically, score_file(self.directory, step_nr), f"{score}\n")
        self._on_first_rank(write, f"The score of step {step_nr} could not be written")

    @override
    def load_scores(self) -> list[tuple[float, int]]:
        """(score, step), the best first."""
        return read_scores(self.directory, self.get_step_numbers())

    @override
    def delete_checkpoint(self, step_nr: int, *, keep_model: bool = False) -> None:
        folder = step_folder(self.directory, step_nr)
        delete = partial(strip_to_model, folder) if keep_model else partial(remove_step, self.directory, step_nr)
        self._on_first_rank(delete, f"{folder} could not be deleted")

    @override
    def get_stale_step_numbers(
        self, keep_last_n: int | None, keep_best_n: int | None, keep_every_n_steps: int | None
    ) -> list[int]:
        """The checkpoints that no rule keeps; rank 0 decides, since clocks differ. None while updates are skipped."""
        if self.is_held:
            return []
        rules = {"last": keep_last_n, "best": keep_best_n, "every": keep_every_n_steps}
        try:
            stale = find_stale_steps(self.directory, **rules, hours=self._keep_hours)
        except OSError as ex:
            stale = []
            log.warning("No checkpoint is deleted now. {}", describe_os_error(ex))
        return self._hosts.gather(stale, "save")[0]

    @override
    def has_checkpoint(self, *, exclude_model_only: bool = False) -> bool:
        return self.resume_point is not None

    @override
    def get_step_numbers(self, *, exclude_model_only: bool = False) -> list[int]:
        steps = list_steps(self.directory, recorded=True)
        return [step for step in steps if not exclude_model_only or (step_folder(self.directory, step) / "trainer").is_dir()]

    @override
    def maybe_get_last_step_number(self, *, exclude_model_only: bool = False) -> int | None:
        """The update to resume from."""
        return None if self.resume_point is None else self.resume_point.step_nr

    # What the first rank does for all

    def _describe_last(self) -> str:
        try:
            return str(next(reversed(self.get_step_numbers(exclude_model_only=True)), "none"))
        except OSError:  # of a store, which does not answer
            return "not known"

    def _on_first_rank(self, action: Callable[[], object], warning: str | None = None) -> str | None:
        """Let rank 0 do something with files, while the others wait.

        :param warning: begins what is logged if it fails.
        :returns: what went wrong, on all ranks.
        """
        error = None
        if self._hosts.rank == 0:
            try:
                action()
            except OSError as ex:
                error = describe_os_error(ex)
                if warning is not None:
                    log.warning("{}: {}", warning, error)

        return self._hosts.gather(error, "save")[0]

    @override
    def close(self) -> None:
        pass
