"""The moving average and its schedule."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from d2v_plugin.core.validation import ensure_valid
from d2v_plugin.criteria.ema import EmaConfig, decay_at, update_average

SCHEDULES = json.loads((Path(__file__).parents[1] / "golden" / "misc.json").read_text())["schedules"]
EMA = {
    "v2/base_audio_only_task.yaml": EmaConfig(start=0.999, end=0.99999, anneal_steps=75_000),
    "v2/large_audio_only_task.yaml": EmaConfig(start=0.9997, end=1.0, anneal_steps=300_000),
    "v2/base_images_only_task.yaml": EmaConfig(start=0.9998, end=0.99999, anneal_steps=100_000),
    "v2/base_text_only_task.yaml": EmaConfig(start=0.9999, end=0.99999, anneal_steps=100_000),
}


@pytest.mark.parametrize("name", EMA)
def test_decay_follows_the_schedule_of_the_original(name: str) -> None:
    for step, decay in SCHEDULES[name]["ema_decay_at"].items():
        assert decay_at(EMA[name], int(step)) == pytest.approx(decay, rel=1e-12)


def test_average_equals_the_recursion() -> None:
    generator = np.random.default_rng(0)
    students = generator.normal(size=(50, 7))
    average = torch.zeros(7)
    expected = np.zeros(7)
    config = EmaConfig(start=0.5, end=0.9, anneal_steps=30)

    for step, student in enumerate(students, start=1):
        decay = decay_at(config, step)
        update_average([average], [torch.tensor(student, dtype=torch.float32)], decay)
        expected = decay * expected + (1 - decay) * student

    assert np.allclose(average.numpy(), expected, atol=1e-6)


def test_decay_of_one_freezes_the_teacher() -> None:
    average = torch.ones(3)
    update_average([average], [torch.full((3,), torch.nan)], 1.0)

    assert torch.equal(average, torch.ones(3))


def test_an_average_that_the_device_may_skip_is_the_same_or_stays() -> None:
    start, current = torch.randn(2, 999).unbind()
    expected, moved, kept = start.clone(), start.clone(), start.clone()
    update_average([expected], [current], 0.999)
    update_average([moved], [current], 0.999, skip=torch.tensor(0.0))
    update_average([kept], [current], 0.999, skip=torch.tensor(1.0))

    assert torch.equal(moved, expected) and not torch.equal(moved, start)
    assert torch.equal(kept, start)


def test_impossible_decays_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`end` must be between 0 and 1, but is 1\.5"):
        ensure_valid(EmaConfig(end=1.5))
    with pytest.raises(ValueError, match="`anneal_steps` must be at least 1"):
        ensure_valid(EmaConfig(anneal_steps=0))
