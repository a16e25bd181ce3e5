"""Layout of a run: the paths of all that it writes, and its checkpoints that are complete.

A checkpoint is complete if it has a record (``complete.json``, see :mod:`d2v_plugin.core.storage`) and its files are those of the
record: all of them by their sizes, and those that are going to be read by their contents. Resuming reads all of them, using a
model only the model's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final, final

from d2v_plugin.core.errors import CheckpointError, NewerFormatError
from d2v_plugin.core.log import log
from d2v_plugin.core.remote import RemotePath, place
from d2v_plugin.core.storage import check_directory, has_record
from d2v_plugin.core.store import is_url


@final
class RunFolder:
    """Paths of what a verb of ``fairseq2 recipe`` writes into its output directory."""

    def __init__(self, path: Path) -> None:
        self.config = path / "config.yaml"
        self.logs = path / "logs"
        self.checkpoints = path / "checkpoints"
        """Unless ``--checkpoint-dir`` names another place."""
        self.metrics = path / "metrics"
        self.tensorboard = path / "tb"
        self.pictures = path / "pictures"
        self.suspects = path / "suspects"
        """Samples of updates that went wrong."""
        self.bad_samples = path / "bad_samples.tsv"
        self.predictions = path / "predictions"
        self.summary = path / "summary.json"
        self.scores = path / "scores.json"
        self.features = path / "features"
        self.parts = path / "parts"


_STEP: Final = r"step_(0|[1-9][0-9]{0,17})"

_SUFFIX: Final = re.compile(r"(.+)@average=([1-9][0-9]{0,3})")

MODEL_FILE: Final = "model.yaml"
"""In the folder of checkpoints: family and configuration of the model, written by fairseq2."""

PROVENANCE_FILE: Final = "origin.yaml"
"""In the folder of checkpoints: see :mod:`d2v_plugin.weights.provenance`."""


def name_average(path: str | Path, count: int) -> str:
    """Name the mean of the last ``count`` checkpoints."""
    return f"{path}@average={count}"


def split_average(path_or_name: str | Path) -> tuple[str | Path, int]:
    """Split a path into that of the run or of its last checkpoint, and how many checkpoints are meant: 1 without a suffix."""
    found = _SUFFIX.fullmatch(str(path_or_name))

    if found is None or place(path_or_name).exists():
        return (place(path_or_name) if is_url(path_or_name) else path_or_name), 1
    return place(found[1]), int(found[2])


def step_folder(checkpoints: Path, step_nr: int) -> Path:
    """The checkpoint of an update."""
    return checkpoints / f"step_{step_nr}"


def unfinished_folder(checkpoints: Path, step_nr: int) -> Path:
    """The place of a checkpoint while it is written: on a store the one that it keeps."""
    return step_folder(checkpoints, step_nr) if isinstance(checkpoints, RemotePath) else checkpoints / f"step_{step_nr}.tmp"


def list_unfinished(checkpoints: Path) -> list[Path]:
    """Checkpoints that are being written or removed, or that a run which died has left so."""
    if isinstance(checkpoints, RemotePath):
        return [path for path in checkpoints.glob("step_*") if parse_step(path) is not None and not has_record(path)]
    return [path for path in checkpoints.glob("step_*.tmp") if re.fullmatch(rf"{_STEP}(\.old)?\.tmp", path.name)]


def score_file(checkpoints: Path, step_nr: int) -> Path:
    """The file of a checkpoint's score."""
    return checkpoints / "scores" / f"step_{step_nr}.txt"


def parse_step(folder: Path) -> int | None:
    """The update of a folder ``step_N``; None if it has another name, as ``step_007`` is."""
    found = re.fullmatch(_STEP, folder.name)
    return None if found is None else int(found[1])


def list_steps(checkpoints: Path, *, recorded: bool = False) -> list[int]:
    """The updates of which a folder has checkpoints, in order.

    :param recorded: only those with a record of their files, which are complete unless they were damaged afterwards.
    """
    folders = checkpoints.iterdir() if checkpoints.is_dir() else ()
    steps = [(step, folder) for folder in folders if (step := parse_step(folder)) is not None and folder.is_dir()]
    recorded |= isinstance(checkpoints, RemotePath)
    return sorted(step for step, folder in steps if has_record(folder) or not recorded)


def read_scores(checkpoints: Path, steps: Iterable[int]) -> list[tuple[float, int]]:
    """The scores of those checkpoints that have one, with their updates; the best first: the higher, the better.

    A score that is no finite number says nothing, and is left out with a warning.
    """
    scores = []
    for step_nr in steps:
        path = score_file(checkpoints, step_nr)
        try:
            score = float(path.read_text())
            if not math.isfinite(score):
                raise ValueError(f"{score} is no finite number")
            scores.append((score, step_nr))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as ex:
            log.warning("{} is ignored: {}", path, ex)

    return sorted(scores, reverse=True)


def named_step(path: Path) -> Path | None:
    """The folder ``step_N`` that a path names: itself, or the one of its ``model``; None if it names none."""
    folder = path.parent if path.name == "model" and (path / "pp_00").is_dir() else path
    return None if parse_step(folder) is None else folder


def find_checkpoints(path: str | Path) -> Path | None:
    """The folder of checkpoints that a path belongs to.

    :param path: the output directory of a run, its ``checkpoints``, or a ``step_N``; perhaps with ``@average=5``.
    :returns: None if the path is none of these.
    """
    path = place(split_average(path)[0])
    if (step := named_step(path)) is not None:
        return step.parent
    return next((folder for folder in (path, path / "checkpoints") if (folder / MODEL_FILE).is_file()), None)


def find_step(path: str | Path, *, best: bool = False) -> Path | None:
    """The checkpoint that a path means.

    Of several, those that are not complete are passed over with a warning.

    :param path: the output directory of a run, its ``checkpoints`` (both mean the last complete checkpoint), or a ``step_N``,
        which is taken as it is; it may be fairseq2's own, without a record.
    :param best: of several checkpoints take the one with the best score instead of the last one.
    :returns: a folder ``step_N``; None if the path is none of these.
    :raises CheckpointError: there is no complete checkpoint, or no score; or a newer version of this package wrote one.
    """
    checkpoints, named = find_checkpoints(path), named_step(place(split_average(path)[0]))
    if checkpoints is None or named is not None:
        return named

    steps = list_steps(checkpoints)[::-1]
    if best and steps:
        steps = [step_nr for _, step_nr in read_scores(checkpoints, steps)]
        if not steps:
            raise CheckpointError(f"{checkpoints} has no scores; a run writes them if `regime.score_metric` is set.")
    problems = []
    for step_nr in steps:
        folder = step_folder(checkpoints, step_nr)
        try:
            check_directory(folder, "model/*")
        except NewerFormatError:
            raise
        except CheckpointError as ex:
            log.warning("Skipped a checkpoint that cannot be used. {}", ex)
            problems.append(str(ex))
        else:
            return folder

    raise CheckpointError(f"{checkpoints} holds no complete checkpoint{': ' if problems else ' yet.'}{' '.join(problems)}")
