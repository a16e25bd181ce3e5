"""Images, speech and text learn from the samples that are shipped: the loss falls, and features become better than random."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]

# The demos, with as little of everything as still shows it.
SMALLER = {
    "digits": [
        *("regime.num_steps=80", "regime.validate_every_n_steps=80"),
        "task.config.batch_size=16",
        "criterion.config.num_views=4",
        "criterion.config.ema.start=0.9",
    ],
    "words": ["regime.num_steps=100", "regime.validate_every_n_steps=100"],
    "books": ["regime.num_steps=120", "regime.validate_every_n_steps=120", "lr_scheduler.config.num_warmup_steps=20"],
}
COMMON = [
    "regime.publish_metrics_every_n_steps=20",
    "regime.validate_at_start=true",
    "pictures.enabled=false",
    "regime.checkpoint_every_n_steps=null",
    "lr_scheduler.config.num_warmup_steps=10",
    "common.torch.num_threads=1",
]


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def train(command: Any, name: str, out: Path, *overrides: str) -> None:
    recipe = ROOT / "recipes" / "demo" / f"{name}.yaml"
    outcome = command("recipe", "train", "--config-file", recipe, out, "--config", *COMMON, *overrides)
    assert outcome.status == 0, outcome.err


@pytest.mark.parametrize("name", SMALLER)
def test_loss_falls_and_probes_rise(command: Any, tmp_path: Path, name: str) -> None:
    train(command, name, tmp_path / "out", "probing.baselines=false", *SMALLER[name])

    updates = read_lines(tmp_path / "out" / "metrics" / "train.jsonl")
    probes = [line["Probe Linear Accuracy"] for line in read_lines(tmp_path / "out" / "metrics" / "valid" / "probe.jsonl")]
    # The loss of text rises, as its targets come to vary more and more.
    assert updates[-1]["Explained Variance"] > updates[0]["Explained Variance"] + 0.05
    assert updates[-1]["Loss"] < updates[0]["Loss"] or name == "books"
    assert probes[-1] > probes[0] + 0.03


def test_one_model_learns_from_three_modalities_and_resumes(command: Any, tmp_path: Path) -> None:
    """Each update is of one modality; stopping after 4 of 8 updates changes nothing."""
    fast = [
        "criterion.config.num_views=2",
        "regime.validate_every_n_steps=null",
        "regime.validate_at_start=false",
        "regime.publish_metrics_every_n_steps=1",
        "probing.probes=[]",
        "lr_scheduler={name: passthrough, config: null}",
        "criterion.config.ema.anneal_steps=4",  # longer than a run it would be fitted to it
    ]
    steps = ["regime.num_steps=8", "regime.checkpoint_every_n_steps=8"]
    train(command, "multimodal", tmp_path / "whole", *fast, *steps, "pictures.enabled=true")
    for num_steps in (4, 8):
        steps = [f"regime.num_steps={num_steps}", "regime.checkpoint_every_n_steps=4"]
        train(command, "multimodal", tmp_path / "parts", *fast, *steps)

    masked = {round(line["Masked Fraction"], 2) for line in read_lines(tmp_path / "whole" / "metrics" / "train.jsonl")}
    assert len(masked) >= 2, "the updates should be of several modalities"
    whole, parts = (
        torch.load(next((tmp_path / name / "checkpoints" / "step_8" / "model").rglob("*.pt")), weights_only=True)
        for name in ("whole", "parts")
    )
    expected = dict(walk(whole))
    assert expected and all(torch.equal(value, expected[key]) for key, value in walk(parts))


def walk(state: Any, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of a checkpoint, by name."""
    if isinstance(state, dict):
        for key, value in state.items():
            yield from walk(value, f"{prefix}.{key}")
    elif isinstance(state, torch.Tensor):
        yield prefix, state
