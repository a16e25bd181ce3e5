"""The scores of a fine-tuning run at its last and at its best checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.weights.sources import find_step

Scores = Mapping[str, float]


def read_history(output_dir: Path, split: str, displayed: Mapping[str, str]) -> dict[int, Scores]:
    """What validation measured on a split, by update; over resumes.

    :param displayed: how fairseq2's recorder calls each score, with the score's own name.
    """
    path = output_dir / "metrics" / "valid" / f"{split}.jsonl"
    if not path.is_file():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]

    return {
        row["Step"]: {name: row[shown] for shown, name in displayed.items() if isinstance(row.get(shown), float)} for row in rows
    }


def compare_checkpoints(
    output_dir: Path, checkpoints: Path, splits: Sequence[str], displayed: Mapping[str, str]
) -> dict[str, Scores]:
    """The scores of the last checkpoint and, where checkpoints are scored, of the best; by split and checkpoint.

    :param checkpoints: the folder of all.
    """
    found: dict[str, Scores] = {}
    chosen = {"last": _find_number(checkpoints, best=False), "best": _find_number(checkpoints, best=True)}
    for split in splits:
        history = read_history(output_dir, split, displayed)
        for which, number in chosen.items():
            if number in history:
                found[f"{split}, {which} (update {number})"] = history[number]

    return found


def _find_number(checkpoints: Path, *, best: bool) -> int:
    try:
        step = find_step(checkpoints, best=best)
    except CheckpointError:
        return -1

    return -1 if step is None else int(step.name.removeprefix("step_"))
