"""Scores of a fine-tuning run at its last and at its best checkpoint, and their table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from d2v_plugin.core.text import format_table
from d2v_plugin.weights.run_folder import RunFolder, list_steps, read_scores

Scores = Mapping[str, float]
"""Scores by their names."""


def read_history(output_dir: Path, split: str, displayed: Mapping[str, str]) -> dict[int, Scores]:
    """Read what validation measured on a split, by update; over resumes.

    :param displayed: how fairseq2's recorder calls each score, with the score's own name.
    """
    path = RunFolder(output_dir).metrics / "valid" / f"{split}.jsonl"
    if not path.is_file():
        return {}
    rows = [json.loads(line) for line in path.read_bytes().decode().split("\n") if line.endswith("}")]

    return {
        row["Step"]: {name: row[shown] for shown, name in displayed.items() if isinstance(row.get(shown), float)} for row in rows
    }


def compare_checkpoints(
    output_dir: Path, checkpoints: Path, splits: Sequence[str], displayed: Mapping[str, str]
) -> dict[str, Scores]:
    """The scores of the last checkpoint and, where checkpoints are scored, of the best; by split and checkpoint.

    :param checkpoints: the folder of all.
    """
    steps = list_steps(checkpoints, recorded=True)
    chosen = {"last": steps[-1:], "best": [step_nr for _, step_nr in read_scores(checkpoints, steps)][:1]}
    found: dict[str, Scores] = {}
    for split in splits:
        history = read_history(output_dir, split, displayed)
        for which, numbers in chosen.items():
            found |= {f"{split}, {which} (update {number})": history[number] for number in numbers if number in history}

    return found


def format_scores(scores: Mapping[str, Scores]) -> list[str]:
    """Lines of a table: one row for everything evaluated, one column for each score."""
    names = list(next(iter(scores.values())))
    rows = [[name, *(f"{value:.4f}" for value in row.values())] for name, row in scores.items()]
    return format_table(["", *(f"{name:>8}" for name in names)], rows)
