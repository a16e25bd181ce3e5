"""The place where a run goes on: its last complete checkpoint, or the one that was asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from d2v_plugin.core.errors import CheckpointError, NewerFormatError
from d2v_plugin.core.log import log
from d2v_plugin.core.remote import place
from d2v_plugin.core.storage import Record, check_files, find_free_name, read_record, remove
from d2v_plugin.training.checkpoints.state_files import find_not_finite, read_state
from d2v_plugin.training.host_group import HostGroup
from d2v_plugin.weights.run_folder import list_steps, list_unfinished, parse_step, score_file, step_folder

_COUNTS: Final = ("step", "ranks", "shards", "readers", "unpublished")
"""What the record of a checkpoint says of the run that wrote it, in numbers of 0 or more."""


@dataclass(frozen=True)
class Resume:
    """Options of the command line for resuming a run."""

    source: str = "auto"
    """``auto``: the last complete checkpoint of the run, or its beginning; ``none``: its beginning; the number of an update; or
    the directory of a checkpoint, also one of another run."""

    extend_schedule: bool = False
    """Whether the schedule and the optimizer's settings may differ from those the checkpoint was written with."""

    accept_changed_data: bool = False
    """Whether the data may differ from what the checkpoint was written with."""


@dataclass(frozen=True)
class ResumePoint:
    """A verified checkpoint."""

    step_nr: int
    folder: Path
    record: Record


def find_resume_point(resume: Resume, directory: Path, hosts: HostGroup) -> ResumePoint | None:
    """Choose and verify a checkpoint, the same one on all ranks; each of them hashes its share of the files.

    :param directory: the run's checkpoints.
    :returns: None if the run starts anew.
    :raises CheckpointError: what was asked for is not there or not complete, or of several checkpoints none is; or a newer
        version of this package wrote one.
    """
    if resume.source == "none":
        return None
    if resume.source != "auto":
        is_number = re.fullmatch(r"[0-9]{1,18}", resume.source) is not None
        point, problem = _verify(step_folder(directory, int(resume.source)) if is_number else place(resume.source), hosts)
        if point is None:
            known = ", ".join(map(str, list_steps(directory, recorded=True))) or "none"
            raise CheckpointError(f"--resume {_shorten(resume.source)}: {problem} There are: {known}.")
        return point

    problems = []
    for step_nr in reversed(list_steps(directory)):
        point, problem = _verify(step_folder(directory, step_nr), hosts)
        if point is not None:
            return point
        problems.append(problem)
        if hosts.rank == 0:
            log.warning("Skipped a checkpoint that cannot be used. {}", problem)
    if problems:
        raise CheckpointError(f"No checkpoint in {directory} can be used (--resume none starts anew): {' '.join(problems)}")

    return None


def clear_the_way(resume: Resume, point: ResumePoint | None, directory: Path, hosts: HostGroup) -> None:
    """Remove what a run that died while it saved or deleted has left, and rename the checkpoints after the one to resume from.

    The run would overwrite these, or take them for its own.
    """
    if hosts.rank == 0:
        for path in list_unfinished(directory):
            remove(path)
        suffix = ".torn" if resume.source == "auto" else ".before"
        for step_nr in list_steps(directory):
            if point is None or step_nr > point.step_nr:
                folder = step_folder(directory, step_nr)
                target = find_free_name(folder.with_suffix(suffix))
                folder.rename(target)
                if (score := score_file(directory, step_nr)).is_file():
                    # It is not that of the checkpoint of this update which the run is going to write.
                    score.rename(target / "score.txt")
                log.warning("{} was renamed to {}; remove it when you do not need it.", folder, target.name)
    hosts.gather(None, "start")


def _verify(folder: Path, hosts: HostGroup) -> tuple[ResumePoint | None, str]:
    """The checkpoint, or what is wrong with it.

    :raises NewerFormatError: a newer version of this package wrote it.
    """
    error: CheckpointError | None = None
    try:
        step_nr = parse_step(folder)
        if step_nr is None or not _is_directory(folder):
            raise CheckpointError(f"{_shorten(folder)} is no checkpoint (a directory `step_N`).")
        record = read_record(folder)
        if not any(name.startswith("trainer/") for name in record.files):
            raise CheckpointError(f"{folder} has only the model; start a new run from it by `init.path`.")
        _check_info(folder, step_nr, record.info)
        own = sorted(record.files)[hosts.rank :: hosts.size]
        check_files(folder, record, own)
        _check_numbers(folder, own)
    except CheckpointError as ex:
        error = ex

    # All ranks say the same, whichever found it.
    error = next((found for found in hosts.gather(error, "start") if found is not None), None)
    if isinstance(error, NewerFormatError):
        raise error
    if error is not None:
        return None, str(error)
    assert step_nr is not None

    return ResumePoint(step_nr, folder, record), ""


def _check_info(folder: Path, step_nr: int, info: Mapping[str, Any]) -> None:
    for name in _COUNTS:
        if not isinstance(info.get(name), int) or info[name] < 0:
            raise CheckpointError(f"{folder} is damaged: its record does not say `{name}` as a number of 0 or more.")
    if info["step"] != step_nr:
        raise CheckpointError(f"{folder} holds update {info['step']}; it was renamed. Give it back its name.")


def _check_numbers(folder: Path, files: list[str]) -> None:
    for name in files:
        if name.startswith(("model/", "optimizer/")):
            found = next(find_not_finite(name, read_state(folder / name, mmap=True)), None)
            if found is not None:
                raise CheckpointError(f"{folder / name}: `{found}` is not finite; nothing can go on from it.")


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # such as a name that is too long
        return False


def _shorten(text: object) -> str:
    shown = str(text)
    return shown if len(shown) <= 200 else f"{shown[:100]}… ({len(shown):,} characters)"
