"""States of a checkpoint given back to a run, also to one with another number of ranks or another schedule."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, final

import torch
from fairseq2.error import StateDictError
from fairseq2.gang import Gangs
from fairseq2.typing import Stateful
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from d2v_plugin.core.errors import CheckpointError, root_cause
from d2v_plugin.core.fairseq2_private import GENERATORS_KEY, METRICS_KEY, SCHEDULE_KEY
from d2v_plugin.core.log import log
from d2v_plugin.training.checkpoints.resume import Resume, ResumePoint
from d2v_plugin.training.checkpoints.schedule_changes import (
    follow_data,
    follow_schedule,
    follow_settings,
    merge_trainer_states,
    same_everywhere,
)
from d2v_plugin.training.checkpoints.state_files import load_optimizer, read_state, reader_file, shard_file, trainer_file


@final
class CheckpointLoader:
    """Loads one verified checkpoint."""

    def __init__(self, point: ResumePoint, gangs: Gangs, resume: Resume) -> None:
        """:param resume: says what of the run may differ from the checkpoint; the run's is taken then."""
        self._point = point
        self._gangs = gangs
        self._extend_schedule = resume.extend_schedule
        self._accept_changed_data = resume.accept_changed_data

    def load_trainer(self, trainer: Stateful) -> dict[str, object]:
        """
        :returns: the metrics, which fairseq2 partly resets.
        """
        now: dict[str, Any] = trainer.state_dict()
        root, ranks = self._gangs.root, self._info("ranks")
        if ranks == root.size:
            state = self._read(trainer_file(root.rank))
        else:
            log.info("The checkpoint was written by {} rank(s); going on with {}.", ranks, root.size)
            devices = [torch.device("cpu"), self._gangs.device][: len(now[GENERATORS_KEY]["generators"])]
            state = merge_trainer_states([self._read(trainer_file(rank)) for rank in range(ranks)], root.rank, devices)

        if missing := {METRICS_KEY, SCHEDULE_KEY} - state.keys():
            raise CheckpointError(f"{self._point.folder}: the trainer's state lacks `{min(missing)}`.")
        state[SCHEDULE_KEY] = follow_schedule(state[SCHEDULE_KEY], now[SCHEDULE_KEY], extend=self._extend_schedule)
        self._load("trainer", trainer, state)
        metrics: dict[str, object] = state[METRICS_KEY]

        return metrics

    @property
    def num_unpublished(self) -> int:
        """Of how many updates the metrics have not been published."""
        return int(self._info("unpublished"))

    def load_model(self, model: Stateful) -> None:
        if self._is_sharded_alike:
            state = self._read(shard_file("model", self._gangs))
        else:
            shards = self._read_shards("model")
            now: dict[str, Any] = model.state_dict()
            state = {key: self._reshard(key, [shard[key] for shard in shards], now.get(key)) for key in shards[0]}
        self._load("model", model, state)

    def load_optimizer(self, optimizer: Stateful) -> None:
        assert isinstance(optimizer, Optimizer)
        if self._is_sharded_alike:
            state = self._read(shard_file("optimizer", self._gangs))
        else:
            shards = self._read_shards("optimizer")
            params = [param for group in optimizer.param_groups for param in group["params"]]
            state = shards[0]
            for index, moments in state["state"].items():
                local = params[index].to_local() if isinstance(params[index], DTensor) else params[index]
                for name in moments:
                    parts = [shard["state"][index][name] for shard in shards]
                    moments[name] = self._reshard(f"{name} of parameter {index}", parts, local)

        if not isinstance(state.get("param_groups"), list) or not isinstance(state.get("state"), dict):
            raise CheckpointError(f"{self._point.folder}: the optimizer's state lacks `param_groups` or `state`.")
        follow_settings(state["param_groups"], optimizer.param_groups, extend=self._extend_schedule)
        try:
            load_optimizer(optimizer, state)
        except (ValueError, TypeError, RuntimeError, KeyError, IndexError) as ex:
            raise self._does_not_fit("optimizer", ex) from ex

    def load_reader(self, reader: Stateful) -> None:
        readers, dp = self._info("readers"), self._gangs.dp
        if readers == dp.size:
            state = self._read(reader_file(dp.rank))
        else:
            states = [self._read(reader_file(rank)) for rank in range(readers)]
            state = states[0]
            if not same_everywhere(states):
                raise CheckpointError(
                    f"{self._point.folder} was written by {readers} ranks whose readers stand at different places; it can only "
                    f"be resumed on as many ranks, not on {dp.size}."
                )
        if self._accept_changed_data:
            state = follow_data(state, reader.state_dict())
        self._load("data reader", reader, state)

    @cached_property
    def _is_sharded_alike(self) -> bool:
        return bool(self._info("shards") == self._gangs.sdp.size)

    def _read_shards(self, kind: str) -> list[dict[str, Any]]:
        names = [shard_file(kind, self._gangs, shard) for shard in range(self._info("shards"))]
        return [read_state(self._point.folder / name, mmap=True) for name in names]

    def _reshard(self, name: str, parts: Sequence[Tensor], now: Tensor | None) -> Tensor:
        """This rank's part of a tensor that other ranks shared along its first dimension, or had each.

        FSDP2 cuts as ``torch.chunk`` does; what comes last may be empty.
        """
        if parts[0].dim() == 0 or now is None:
            return parts[0]
        whole, sdp = torch.cat(list(parts)), self._gangs.sdp
        size = -(-len(whole) // sdp.size)
        for found in (whole[sdp.rank * size : (sdp.rank + 1) * size], parts[0]):
            if found.shape == now.shape:
                return found.clone()

        raise CheckpointError(f"{self._point.folder}: `{name}` does not fit this run; was the recipe changed?")

    def _load(self, kind: str, target: Stateful, state: dict[str, object]) -> None:
        try:
            target.load_state_dict(state)
        except (ValueError, TypeError, RuntimeError, KeyError, StateDictError) as ex:
            raise self._does_not_fit(kind, ex) from ex

    def _does_not_fit(self, kind: str, ex: Exception) -> CheckpointError:
        return CheckpointError(
            f"The {kind}'s state in {self._point.folder} does not fit this run; was the recipe changed? {root_cause(ex)}"
        )

    def _read(self, name: str) -> dict[str, Any]:
        return read_state(self._point.folder / name)

    def _info(self, name: str) -> Any:
        return self._point.record.info[name]
