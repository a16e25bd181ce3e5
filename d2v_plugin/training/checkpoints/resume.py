"""Where a run goes on from: the last complete checkpoint, or the one that was asked for."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from fairseq2.logging import log

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.core.storage import RECORD_FILE, Record, check_files, read_record
from d2v_plugin.training.host_group import HostGroup


@dataclass(frozen=True)
class Resume:
    """What the command line says about resuming."""

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

    Checkpoints that will not be used and that the run would overwrite or take for its own are set aside under another name.

    :param directory: the run's checkpoints.
    :returns: None if the run starts anew.
    :raises CheckpointError: what was asked for is not there or not complete, or of several checkpoints none is.
    """
    if hosts.rank == 0:
        _remove_unfinished(directory)
    hosts.gather(None)
    steps = list_steps(directory)

    if resume.source == "none":
        _set_aside(directory, steps, "before", hosts)
        return None
    if resume.source != "auto":
        folder = directory / f"step_{int(resume.source)}" if resume.source.isdecimal() else Path(resume.source)
        point, problem = _verify(folder, hosts)
        if point is None:
            raise CheckpointError(f"--resume {resume.source}: {problem}{_list_known(directory, steps)}")
        _set_aside(directory, [step for step in steps if step > point.step_nr], "before", hosts)
        return point

    problems = []
    for step in reversed(steps):
        point, problem = _verify(directory / f"step_{step}", hosts)
        if point is not None:
            _set_aside(directory, [other for other in steps if other > step], "torn", hosts)
            return point
        problems.append(problem)
        if hosts.rank == 0:
            log.warning("Skipped a checkpoint that cannot be used. {}", problem)
    if problems:
        raise CheckpointError(f"No checkpoint in {directory} can be used (--resume none starts anew): {' '.join(problems)}")

    return None


def list_steps(directory: Path) -> list[int]:
    """The updates of which a directory has checkpoints, in order."""
    if not directory.is_dir():
        return []
    found = (re.fullmatch(r"step_(\d+)", path.name) for path in directory.iterdir() if path.is_dir())

    return sorted(int(match[1]) for match in found if match is not None)


def _verify(folder: Path, hosts: HostGroup) -> tuple[ResumePoint | None, str]:
    """The checkpoint, or what is wrong with it."""
    try:
        step = re.fullmatch(r"step_(\d+)", folder.name)
        if step is None or not folder.is_dir():
            raise CheckpointError(f"{folder} is no checkpoint (a directory `step_N`).")
        record = read_record(folder)
        if not any(name.startswith("trainer/") for name in record.files):
            raise CheckpointError(f"{folder} has only the model; start a new run from it by `init.path`.")
        point, problem = ResumePoint(int(step[1]), folder, record), ""
        check_files(folder, record, sorted(record.files)[hosts.rank :: hosts.size])
    except CheckpointError as ex:
        point, problem = None, str(ex)

    problem = next((found for found in hosts.gather(problem) if found), "")

    return (None, problem) if problem else (point, "")


def _set_aside(directory: Path, steps: list[int], suffix: str, hosts: HostGroup) -> None:
    """Rename ``step_N`` to ``step_N.SUFFIX``, which nothing takes for a checkpoint of the run."""
    if hosts.rank == 0:
        for step in steps:
            folder = directory / f"step_{step}"
            target = folder.with_suffix(f".{suffix}")
            if target.exists():
                shutil.rmtree(target)
            folder.rename(target)
            log.warning("{} was renamed to {}; remove it when you do not need it.", folder, target.name)
    hosts.gather(None)


def _remove_unfinished(directory: Path) -> None:
    """Remove what a run that died while it saved or deleted has left."""
    for path in directory.glob("step_*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def _list_known(directory: Path, steps: list[int]) -> str:
    complete = [step for step in steps if (directory / f"step_{step}" / RECORD_FILE).is_file()]

    return f" There are: {', '.join(map(str, complete)) or 'none'}."
