"""Removal of checkpoints that no rule keeps."""

from __future__ import annotations

import time
from pathlib import Path

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.core.storage import Record, read_record, remove, remove_directory, write_record
from d2v_plugin.weights.run_folder import list_steps, read_scores, score_file, step_folder


def find_stale_steps(directory: Path, *, last: int | None, best: int | None, every: int | None, hours: float | None) -> list[int]:
    """The checkpoints that no rule keeps; none if there is no rule. The last one is never among them.

    :param last: keep this many of the last ones.
    :param best: keep this many of those with the highest scores.
    :param every: keep those of multiples of this number of updates.
    :param hours: keep younger ones.
    """
    if (last, best, every, hours) == (None, None, None, None):
        return []
    steps = list_steps(directory, recorded=True)
    kept = set(steps[-(last or 1) :])
    if best is not None:
        kept.update(step_nr for _, step_nr in read_scores(directory, steps)[:best])
    if every is not None:
        kept.update(step_nr for step_nr in steps if step_nr % every == 0)
    if hours is not None:
        kept.update(step_nr for step_nr in steps if _hours_since(step_folder(directory, step_nr)) < hours)

    return [step_nr for step_nr in steps if step_nr not in kept]


def _hours_since(folder: Path) -> float:
    try:
        return (time.time() - float(read_record(folder).info["written"])) / 3600
    except (CheckpointError, KeyError, ValueError):
        return 0.0


def remove_step(directory: Path, step_nr: int) -> None:
    """Remove a checkpoint, if it is there, and its score."""
    if (folder := step_folder(directory, step_nr)).exists():
        remove_directory(folder)
        score_file(directory, step_nr).unlink(missing_ok=True)


def strip_to_model(folder: Path) -> None:
    """Remove all of a checkpoint but the model; it is complete at any moment."""
    record = read_record(folder)
    kept = {name: file for name, file in record.files.items() if name.startswith("model/")}
    write_record(folder, Record(kept, record.info))
    for name in record.files.keys() - kept.keys():
        (folder / name).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.is_dir() and path.name not in ("model", "hg", "hook"):
            remove(path)
