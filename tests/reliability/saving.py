"""A manager of checkpoints without a training run around it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fairseq2.device import CPU
from fairseq2.gang import create_fake_gangs
from fairseq2.utils.threading import _StandardThreadPool as ThreadPool

from d2v_plugin.training.checkpoints.manager import VerifiedCheckpointManager
from d2v_plugin.training.checkpoints.resume import Resume
from d2v_plugin.training.host_group import HostGroup

KINDS = ("trainer", "model", "optimizer", "data_reader")


class Part:
    """Something with a state that knows its step; 100 kB."""

    def __init__(self, step_nr: int = 0, extra: object = 0) -> None:
        self.state: dict[str, Any] = {"step": step_nr, "values": torch.full((25_000,), float(step_nr)), "extra": extra}

    def state_dict(self) -> dict[str, object]:
        return {**self.state, "_lr_scheduler": {}, "_metric_bag": {}}

    def load_state_dict(self, state_dict: Mapping[str, object]) -> None:
        self.state = dict(state_dict)


def make_manager(directory: Path, resume: str = "auto", **settings: Any) -> VerifiedCheckpointManager:
    gangs = create_fake_gangs(CPU)

    return VerifiedCheckpointManager(
        directory, gangs, HostGroup(gangs.root), ThreadPool(max_num_workers=1), resume=Resume(resume), **settings
    )


def save(manager: VerifiedCheckpointManager, step_nr: int, *, blocking: bool = True) -> None:
    manager.save_checkpoint(step_nr, *(Part(step_nr) for _ in KINDS), blocking=blocking)


def load(manager: VerifiedCheckpointManager) -> int:
    """The step of the state that is resumed; every kind must be of the same."""
    step_nr = manager.maybe_get_last_step_number()
    assert step_nr is not None
    parts = [Part() for _ in range(3)]
    manager.load_trainer_state(step_nr, parts[0])
    manager.load_model_state(step_nr, parts[1])
    manager.load_data_reader_state(step_nr, parts[2])
    for part in parts:
        assert part.state["step"] == step_nr and torch.equal(part.state["values"], Part(step_nr).state["values"])

    return step_nr


def save_for_ever(directory: Path) -> None:
    """Goes on from the last checkpoint, saving one step after the other and keeping two."""
    manager = make_manager(directory)
    step_nr = load(manager) if manager.has_checkpoint() else 0
    while True:
        step_nr += 1
        save(manager, step_nr)
        for stale in manager.get_stale_step_numbers(2, None, None):
            manager.delete_checkpoint(stale)
