"""Files of states: plain data and tensors only, hashed while they are written, read without executing anything."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from fairseq2.gang import Gangs
from fairseq2.typing import Stateful
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.core.remote import localized, written
from d2v_plugin.core.storage import FileRecord
from d2v_plugin.weights.torch_file import explained

State = Mapping[str, object]


def shard_file(kind: str, gangs: Gangs, shard: int | None = None) -> str:
    """The file of the part of the model or the optimizer that a rank has, or a neighbour with whom it shares parameters."""
    shard = gangs.sdp.rank if shard is None else shard
    return f"{kind}/pp_{gangs.pp.rank:02d}/tp_{gangs.tp.rank:02d}/sdp_{shard:02d}.pt"


def trainer_file(rank: int) -> str:
    """The file of a rank's part of the trainer's state."""
    return f"trainer/rank_{rank:02d}.pt"


def reader_file(rank: int) -> str:
    """The file of the reader's state, by the rank among those that share the data."""
    return f"data_reader/dp_{rank:02d}.pt"


def share_states(
    gangs: Gangs,
    model: Stateful,
    *,
    trainer: Stateful | None = None,
    optimizer: Stateful | None = None,
    reader: Stateful | None = None,
) -> dict[str, Stateful]:
    """The states that this rank writes, by their files; what all ranks have alike is written by one."""
    states: dict[str, Stateful | None] = {trainer_file(gangs.root.rank): trainer}
    if gangs.rdp.rank == 0:
        states |= {shard_file("model", gangs): model, shard_file("optimizer", gangs): optimizer}
    if gangs.tp.rank == 0:
        states[reader_file(gangs.dp.rank)] = reader

    return {name: state for name, state in states.items() if state is not None}


def to_plain(value: object, *, copy: bool, name: str = "state") -> Any:
    """Make of a state one with nothing but dictionaries, lists, tuples, numbers, strings and tensors in the host's memory.

    :param copy: also copy tensors that are there already, so that training may go on while the result is written.
    :param name: what it is called in a message.
    :raises TypeError: it contains something else, which could not be read again without executing code.
    """
    match value:
        case DTensor():
            return to_plain(value.to_local(), copy=copy, name=name)
        case Tensor():
            return value.detach().to("cpu", copy=copy)
        case dict():
            return {key: to_plain(item, copy=copy, name=f"{name}.{key}") for key, item in value.items()}
        case list() | tuple():
            items = [to_plain(item, copy=copy, name=f"{name}[{index}]") for index, item in enumerate(value)]
            return items if isinstance(value, list) else tuple(items)
        case None | bool() | int() | float() | str() | bytes():
            return value
    raise TypeError(f"`{name}` cannot be saved: a checkpoint holds plain data and tensors, but this is a {type(value).__name__}.")


@dataclass(frozen=True)
class Written:
    """The part of a checkpoint that one rank has written."""

    files: Mapping[str, FileRecord]

    error: str | None = None
    """Why it could not write everything."""

    not_finite: Sequence[str] = ()
    """Weights, or moments of the optimizer, that are not finite: nothing was written then."""


def write_states(states: Mapping[str, State], folder: Path) -> Written:
    """Write plain states into files of these names, if a run could go on from them."""
    if not_finite := [found for name, state in states.items() for found in find_not_finite(name, state)]:
        return Written({}, not_finite=not_finite)
    try:
        return Written({name: write_state(state, folder / name) for name, state in states.items()})
    except OSError as ex:
        return Written({}, describe_os_error(ex, folder))


def find_not_finite(file: str, state: object, name: str = "") -> Iterator[str]:
    """The names of tensors that are not finite; those of the model, with its teacher, and of the optimizer are looked at."""
    if not file.startswith(("model/", "optimizer/")):
        return
    match state:
        case Tensor():
            if state.is_floating_point() and not bool(state.isfinite().all()):
                yield f"{file.partition('/')[0]}{name}"
        case dict():
            for key, item in state.items():
                yield from find_not_finite(file, item, f"{name}.{key}")
        case list() | tuple():
            for index, item in enumerate(state):
                yield from find_not_finite(file, item, f"{name}.{index}")


def describe_os_error(ex: OSError, path: Path | None = None) -> str:
    """One sentence: the file, or ``path`` if the error names none, and what went wrong."""
    return f"{ex.filename or path}: {ex.strerror or ex}."


def write_state(state: State, path: Path) -> FileRecord:
    """Write a plain state, to the disk.

    :raises OSError: it cannot be written.
    """
    with written(path) as place, place.open("wb", buffering=0) as file:
        hashing = _HashingFile(file)
        try:
            # `torch.load(weights_only=True)` reads no newer protocol.
            torch.save(state, cast("BinaryIO", hashing), pickle_protocol=2)
        except RuntimeError:
            if hashing.error is not None:
                raise hashing.error from None
            raise
        os.fsync(file.fileno())

    return FileRecord(hashing.size, hashing.sha256.hexdigest())


class _HashingFile:
    """As much of a file as ``torch.save`` needs."""

    def __init__(self, file: BinaryIO | Any) -> None:
        self._file = file
        self.size = 0
        self.sha256 = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        view = memoryview(data).cast("B")
        self.sha256.update(view)
        self.size += len(view)
        written = 0
        try:
            while written < len(view):
                written += self._file.write(view[written:])
        except OSError as ex:
            # PyTorch loses it on the way.
            self.error = ex
            raise

        return len(view)

    def flush(self) -> None:
        pass


def read_state(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """Read a state.

    :param mmap: take memory only for what is used of it.
    :raises CheckpointError: the file cannot be read, is damaged, or would execute something.
    """
    # What is mapped stays when the name of a local copy goes.
    with explained(path), localized(path) as file:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} does not hold a state.")

    return state


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load a plain state; where a parameter is sharded, its moments become shards again."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for index, moments in state["state"].items():
        param = params[index]
        if not isinstance(param, DTensor):
            continue
        for name, value in moments.items():
            if isinstance(value, Tensor) and value.dim() > 0:
                moments[name] = DTensor.from_local(
                    value.to(param.device), param.device_mesh, param.placements, shape=param.shape, stride=param.stride()
                )

    optimizer.load_state_dict(state)
