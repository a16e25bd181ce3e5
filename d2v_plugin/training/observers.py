"""Observers: the one way to be told what training does.

fairseq2's trainer runs an update in this order, and everybody who wants to know is told by these methods alone:

1. It asks for the next batches. Between two updates a run may stop (:mod:`d2v_plugin.training.stopping`).
2. It tells the unit the number of the update: :meth:`Observer.before_update`.
3. It computes one or several forward passes, each followed by its backward pass: :meth:`Observer.after_forward`.
4. It takes the norm of all gradients and steps the optimizer. Whether the update counts is decided there
   (:mod:`d2v_plugin.training.health.update_guard`): on a GPU first by the device, :meth:`Observer.before_wait`, and always when
   the host knows, :meth:`Observer.after_update`.
5. It saves and publishes what is due. The checkpoint of an update holds what observers did after it; published metrics are
   completed by :meth:`Observer.add_metrics`.
6. After the last update, when the ranks have parted: :meth:`Observer.at_end`.

Each event goes through the whole list of observers, one after the other. The order of that list matters: it is written down, with
the reasons, in :func:`d2v_plugin.verbs.train.recipe.create_observers`.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import final

from torch import Tensor
from typing_extensions import override

from d2v_plugin.core.batch import Batch
from d2v_plugin.core.contracts import LossOutput
from d2v_plugin.criteria.base import criterion_of
from d2v_plugin.models.base import EncoderModel


class Observer:
    """Is told what training does. Nothing here may wait for the device, or for other ranks, unless it says so."""

    def before_update(self, step_nr: int) -> None:
        """Called before the first forward pass; again if an update is repeated, as after an overflow of fp16 gradients."""

    def after_forward(self, batch: Batch, output: LossOutput) -> None:
        """Called after each forward pass of this rank, before its backward pass."""

    def before_wait(self, step_nr: int, skip: Tensor) -> None:
        """Called on a GPU when the optimizer's step is queued, before the host waits to know whether the update counts.

        :param skip: 1 on the device = it does not; else 0.
        """

    def after_update(self, step_nr: int, *, norm: float, losses: Sequence[float], skipped: bool) -> None:
        """Called once per update, when the optimizer has stepped and before the checkpoint of this update.

        :param norm: of all gradients; not finite if the update was skipped.
        :param losses: of the forward passes of this rank, each the mean over its targets.
        :param skipped: the update changed nothing, on any rank.
        """

    def add_metrics(self, values: MutableMapping[str, object]) -> None:
        """Called on rank 0 when metrics are published."""

    def at_end(self, step_nr: int) -> None:
        """Called after the last update; not if the run was stopped before. Ranks cannot communicate any more."""


@final
class EmaObserver(Observer):
    """Lets the criterion's teacher follow the student after every update that was not skipped."""

    def __init__(self, model: EncoderModel) -> None:
        self._model = model
        self._is_queued = False

    @override
    def before_wait(self, step_nr: int, skip: Tensor) -> None:
        criterion = criterion_of(self._model)
        self._is_queued = criterion is not None and criterion.queue_after_step(self._model, step_nr, skip)

    @override
    def after_update(self, step_nr: int, *, norm: float, losses: Sequence[float], skipped: bool) -> None:
        criterion = criterion_of(self._model)
        if criterion is not None and not skipped and not self._is_queued:
            criterion.after_step(self._model, step_nr)
