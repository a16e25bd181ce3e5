"""Differences between a checkpoint and the run that resumes it: the number of ranks, and the schedule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.core.fairseq2_private import GENERATORS_KEY, METRICS_KEY, STEP_KEY
from d2v_plugin.data.reader import DATA_KEY

# Where a scheduler stands; all the rest is which curve it follows.
_POSITION: Final = {"last_epoch", "_step_count", "_last_lr", "_get_lr_called_within_step"}

# What schedulers write into the optimizer's groups, what is no setting, and what only says how the same is computed.
_MOVING: Final = {"params", "lr"}
_IMPLEMENTATION: Final = {"foreach", "fused", "capturable"}


def follow_schedule(saved: Mapping[str, Any], current: Mapping[str, Any], *, extend: bool) -> dict[str, Any]:
    """The scheduler's state to load: at the saved position of the current curve.

    fairseq2 loads the saved curve: a cosine that was extended would start over from its peak.

    :raises CheckpointError: the curves differ and ``extend`` is not set.
    """
    changes = list(_list_changes(saved, current, _POSITION))
    if changes and not extend:
        raise CheckpointError(
            f"The learning-rate schedule is not the checkpoint's ({'; '.join(changes)}), because `regime.num_steps`, "
            "`lr_scheduler` or `optimizer` was changed. Restore them, or add --extend-schedule to follow the new schedule."
        )
    return {**current, **{key: value for key, value in saved.items() if key in _POSITION}}


def follow_settings(saved: list[dict[str, Any]], current: list[dict[str, Any]], *, extend: bool) -> None:
    """Write the current settings of the optimizer's groups into the saved ones, from which it loads them.

    :raises CheckpointError: they differ and ``extend`` is not set.
    """
    for number, (old, new) in enumerate(zip(saved, current, strict=False)):
        changes = list(_list_changes(old, new, _MOVING | _IMPLEMENTATION))
        if changes and not extend:
            raise CheckpointError(
                f"The settings of the optimizer's parameter group {number} are not the checkpoint's ({'; '.join(changes)}). "
                "Restore them, or add --extend-schedule to use the new ones from here on."
            )
        old.update({key: value for key, value in new.items() if key not in _MOVING})


def follow_data(saved: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, Any]:
    """A reader's state to load: at the saved position of the current data, whose hash takes the place of the saved one.

    :param saved: of a reader, or of several by their names.
    """
    return {
        key: follow_data(value, current.get(key, {}))
        if isinstance(value, Mapping)
        else current.get(key, value)
        if key == DATA_KEY
        else value
        for key, value in saved.items()
    }


def _list_changes(old: Mapping[str, Any], new: Mapping[str, Any], ignored: set[str]) -> Iterator[str]:
    """In words; keys that only one side has belong to another version of the software, not to the user."""
    for key in old:
        if key in new and key not in ignored and not _equal(old[key], new[key]):
            yield f"{key} was {old[key]}, is {new[key]}"


def _equal(old: Any, new: Any) -> bool:
    if isinstance(old, Tensor) or isinstance(new, Tensor):
        return torch.equal(torch.as_tensor(old), torch.as_tensor(new))
    if isinstance(old, list | tuple) and isinstance(new, list | tuple):
        return len(old) == len(new) and all(_equal(a, b) for a, b in zip(old, new, strict=True))
    return bool(old == new)


def merge_trainer_states(states: Sequence[dict[str, Any]], rank: int, devices: Sequence[torch.device]) -> dict[str, Any]:
    """The trainer's state for one of another number of ranks.

    Sums move to rank 0; where everything else is the same on all ranks, rank 0's is taken. The generators start anew, from a
    seed that is a function of the update and the rank: their states belong to ranks that are no more.

    :param devices: one for each of the trainer's generators.
    """
    first = states[0]
    bags = [state[METRICS_KEY] for state in states]
    merged = {
        metric: {
            name: torch.stack([bag[metric][name] for bag in bags]).sum(0) * (rank == 0) if isinstance(value, Tensor) else value
            for name, value in values.items()
        }
        for metric, values in first[METRICS_KEY].items()
    }
    generators = [torch.Generator(device).manual_seed((int(first[STEP_KEY]) << 20) + rank).get_state() for device in devices]

    return {**first, METRICS_KEY: merged, GENERATORS_KEY: {"generators": generators}}


def same_everywhere(states: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether all ranks had the same state."""
    return all(
        state.keys() == states[0].keys() and all(_equal(state[key], value) for key, value in states[0].items())
        for state in states[1:]
    )
