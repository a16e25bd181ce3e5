"""Reading and comparing checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

# What a clock says may differ.
TIMES = ("Time", "per Second", "Wall", "Elapsed", "Memory", "RSS")


def load_states(out: Path, step: int) -> dict[str, Any]:
    """All files of a checkpoint, flattened to name -> leaf; nothing in them is executed."""
    folder = out / "checkpoints" / f"step_{step}"
    leaves: dict[str, Any] = {}

    def flatten(name: str, value: Any) -> None:
        if isinstance(value, dict | list | tuple):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for key, item in items:
                flatten(f"{name}.{key}", item)
        elif "_base_wall_time" not in name:
            leaves[name] = value

    for path in sorted(folder.rglob("*.pt")):
        flatten(str(path.relative_to(folder)), torch.load(path, weights_only=True))

    return leaves


def differences(actual: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """The names of what is not bit-identical."""
    assert actual.keys() == expected.keys()

    return [
        name
        for name, value in expected.items()
        if not (torch.equal(actual[name], value) if isinstance(value, torch.Tensor) else actual[name] == value)
    ]


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """What was logged of training, without what depends on the clock."""
    lines = [json.loads(line) for line in (out / "metrics" / "train.jsonl").read_text().splitlines()]

    return [{key: value for key, value in line.items() if not any(time in key for time in TIMES)} for line in lines]
