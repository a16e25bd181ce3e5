"""The place where a run goes on: its last complete checkpoint, or the one that was asked for."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from fairseq2.logging import log

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.core.storage import Record, check_files, read_record
from d2v_plugin.training.host_group import HostGroup
from d2v_plugin.weights.run_folder import list_steps, list_unfinished, parse_step, step_folder


@dataclass(frozen=True)
class Resume:
    """Options of the command line for resuming a run."""

    source: str = "auto"
    """``auto``: the last complete checkpoint of the run, or its beginning; ``none``: its beginning; the number of an update; or
    the directory of a checkpoint, also one of another run."""

    extend_schedule: bool = False
    """Whether the schedule and the optimizer's settings may differ from those the checkpoint was written with."""


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
    :raises CheckpointError: what was asked for is not there or not complete, or of several checkpoints none is.
    """
    if resume.source == "none":
        return None
    if resume.source != "auto":
        folder = step_folder(directory, int(resume.source)) if resume.source.isdecimal() else Path(resume.source)
        point, problem = _verify(folder, hosts)
        if point is None:
            known = ", ".join(map(str, list_steps(directory, recorded=True))) or "none"
            raise CheckpointError(f"--resume {resume.source}: {problem} There are: {known}.")
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
            shutil.rmtree(path, ignore_errors=True)
        suffix = ".torn" if resume.source == "auto" else ".before"
        for step_nr in list_steps(directory):
            if point is None or step_nr > point.step_nr:
                folder = step_folder(directory, step_nr)
                target = folder.with_suffix(suffix)
                if target.exists():
                    shutil.rmtree(target)
                folder.rename(target)
                log.warning("{} was renamed to {}; remove it when you do not need it.", folder, target.name)
    hosts.gather(None)


def _verify(folder: Path, hosts: HostGroup) -> tuple[ResumePoint | None, str]:
    """The checkpoint, or what is wrong with it."""
    try:
        step_nr = parse_step(folder)
        if step_nr is None or not folder.is_dir():
            raise CheckpointError(f"{folder} is no checkpoint (a directory `step_N`).")
        record = read_record(folder)
        if not any(name.startswith("trainer/") for name in record.files):
            raise CheckpointError(f"{folder} has only the model; start a new run from it by `init.path`.")
        point, problem = ResumePoint(step_nr, folder, record), ""
        check_files(folder, record, sorted(record.files)[hosts.rank :: hosts.size])
    except CheckpointError as ex:
        point, problem = None, str(ex)

    problem = next((found for found in hosts.gather(problem) if found), "")

    return (None, problem) if problem else (point, "")
