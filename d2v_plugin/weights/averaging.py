"""The mean of a run's last checkpoints, named by a suffix of its path: ``out/tuned@average=5``."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import torch

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.core.storage import read_record
from d2v_plugin.weights.run_folder import list_steps, parse_step, step_folder
from d2v_plugin.weights.state import State, compare


def find_last(step: Path, count: int) -> list[Path]:
    """Find a checkpoint and those before it, the last one first.

    :raises CheckpointError: there are not so many complete ones, or they are of different runs.
    """
    last = parse_step(step)
    assert last is not None
    steps = [number for number in list_steps(step.parent, recorded=True) if number <= last][-count:]
    if len(steps) < count:
        raise CheckpointError(
            f"{step.parent} holds {len(steps)} complete checkpoints up to {step.name}, but the mean of {count} is wanted. Set "
            "`checkpoint.average` lower, or let the run keep more: `regime.keep_last_n_checkpoints`."
        )

    folders = [step_folder(step.parent, number) for number in reversed(steps)]
    for later, sooner in pairwise(folders):
        if read_record(later).info.get("written", 0.0) < read_record(sooner).info.get("written", 0.0):
            raise CheckpointError(
                f"{later} was written before {sooner.name}, so they are not of one run; there is no mean of them. Move away what "
                "does not belong to the run."
            )

    return folders


def average(states: Iterable[tuple[Path, State]]) -> State:
    """Compute the mean of weights in fp64, rounded to the type that they have. One state is in memory at a time.

    :param states: with their places, for messages.
    :raises CheckpointError: they are not those of one model.
    """
    total: State = {}
    first: State = {}
    count = 0
    for path, state in states:
        if not first:
            first = {key: torch.empty_like(tensor, device="meta") for key, tensor in state.items()}
        compare(first, state).raise_if_any(f"{path} is a checkpoint of another model, with which there is no mean:")
        for key, tensor in state.items():
            total[key] = total[key].add_(tensor) if key in total else tensor.to(torch.float64, copy=True)
        count += 1

    return {key: (tensor / count).to(first[key].dtype) for key, tensor in total.items()}
