"""What the recipes that work on a checkpoint share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from d2v_plugin.weights.run_folder import find_step


@dataclass(kw_only=True)
class CheckpointSection:
    """What is evaluated."""

    path: str | None = None
    """The output directory of a run, its ``checkpoints`` or one of its ``step_N``; for probes also a directory written by
    tools/convert_checkpoint.py, or a registered name."""

    best: bool = False
    """Of several checkpoints take the one with the best score (``regime.score_metric`` of the run) instead of the last one."""

    weights: Literal["student", "teacher"] = "student"
    """Which weights are probed; fine-tuned models have no teacher."""


def choose_checkpoint(path: str, *, best: bool) -> str | Path:
    """What a path means: of a run, its last or its best checkpoint, ``step_N``; anything else as it is.

    :raises CheckpointError: there is none.
    """
    step = find_step(path, best=best)

    return path if step is None else step


# The baseline's weights are those of this seed in every run of an arch.
BASELINE_SEED = 1
