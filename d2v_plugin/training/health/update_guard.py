"""Guard of updates: a loss or gradient that is not finite, on any rank, changes nothing on any rank.

The ranks agree without a message of their own. A loss that is not finite makes all gradients of its rank NaN; the all-reduce of
DDP and the reduce-scatter of FSDP carry that, like any gradient that is not finite, to all ranks; and the norm of all gradients,
which fairseq2's trainer computes in every update whether it clips or not, is then not finite on all of them. So is a norm that
overflows although each gradient is finite.

Fused optimizers, which are the default, leave out the update on the device, and the host reads the norm after it has queued the
optimizer's work, where fairseq2's trainer waits for the device in any case. On a GPU the teacher's work is queued by then, too,
and left out in the same way. For other optimizers the host has to know the norm before.

A skipped update counts as done: the next has the next number, the next samples, learning rate and EMA decay. Weights, moments of
the optimizer and the teacher stay as they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, final

import torch
from fairseq2.metrics import MetricBag, Sum
from fairseq2.nn.data_parallel import DataParallelFacade, get_data_parallel_facade, set_data_parallel_facade
from fairseq2.typing import ContextManager
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from d2v_plugin.core.batch import Batch
from d2v_plugin.core.contracts import LossOutput
from d2v_plugin.training.observers import Observer
from d2v_plugin.training.optimizer import forget_update

SKIPPED_UPDATES: Final = "total_skipped_updates"
"""The metric: how many updates of the run were skipped."""


@final
class UpdateGuard:
    """Decides which updates count, and tells the observers; the only one who steps between trainer and optimizer."""

    def __init__(self, observers: Sequence[Observer], *, rank: int) -> None:
        """
        :param observers: are told of every update, in this order.
        :param rank: of all ranks the first counts skipped updates.
        """
        self.observers = observers
        self._rank = rank
        self._step_nr = 0
        self._losses: list[Tensor] = []
        self._norm = self._shown_norm = torch.zeros(())
        self._values: list[float] | None = None
        self._metric_bag: MetricBag | None = None
        self._owns_found_inf = False
        self.num_skipped = 0

    def prepare_metric_bag(self, metric_bag: MetricBag) -> None:
        """Add the metric that counts skipped updates."""
        metric_bag.add(SKIPPED_UPDATES, Sum())
        self._metric_bag = metric_bag

    def attach(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Step between fairseq2's trainer and the optimizer.

        :param model: the data-parallel wrapper.
        """
        set_data_parallel_facade(model, _ObservedFacade(get_data_parallel_facade(model), self._take_norm))
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)

    def before_update(self, step_nr: int) -> None:
        """Called before the first forward pass of an update."""
        self._step_nr = step_nr
        self._losses = []
        self._values = None
        for observer in self.observers:
            observer.before_update(step_nr)

    def after_forward(self, batch: Batch, output: LossOutput) -> Tensor:
        """Called after each forward pass.

        :returns: the loss to go backward from; a finite one is unchanged.
        """
        loss = output.loss
        self._losses.append(loss.detach() / output.num_targets)
        for observer in self.observers:
            observer.after_forward(batch, output)

        # NaN times anything is NaN, also where the gradient would be finite or zero.
        return loss * torch.where(loss.detach().isfinite(), 1.0, math.nan)

    def _take_norm(self, norm: Tensor) -> Tensor:
        """Called with the norm of all gradients.

        :returns: the norm for the trainer's metric, in which one NaN would be all that is left of an interval.
        """
        self._norm = norm.detach()
        self._shown_norm = torch.where(self._norm.isfinite(), self._norm, self._shown_norm.to(norm))

        return self._shown_norm

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if _skips_on_device(optimizer):
            found: Tensor | None = getattr(optimizer, "found_inf", None)
            if found is None:  # otherwise it is that of fp16's loss scaler, which looked at the same gradients
                optimizer.found_inf = (~self._norm.isfinite()).float()  # type: ignore[attr-defined]
                self._owns_found_inf = True
        elif not math.isfinite(self._read()[0]):
            forget_update(optimizer)
            # Without gradients the step of an optimizer does nothing.
            optimizer.zero_grad(set_to_none=True)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        is_scaled = _skips_on_device(optimizer) and not self._owns_found_inf
        if self._owns_found_inf:
            if _host_waits_for(self._norm):
                for observer in self.observers:
                    observer.before_wait(self._step_nr, optimizer.found_inf)  # type: ignore[attr-defined]
            del optimizer.found_inf  # type: ignore[attr-defined]
            self._owns_found_inf = False

        norm, *losses = self._read()
        skipped = not math.isfinite(norm)
        if skipped and _skips_on_device(optimizer):
            forget_update(optimizer)
        # An overflow of fp16 gradients is part of finding the scale: fairseq2 counts and repeats those updates.
        if skipped and is_scaled:
            return
        if skipped:
            self.num_skipped += 1
            if self._rank == 0 and self._metric_bag is not None:
                self._metric_bag.get(SKIPPED_UPDATES, Sum).update(1)
        for observer in self.observers:
            observer.after_update(self._step_nr, norm=norm, losses=losses, skipped=skipped)

    def _read(self) -> list[float]:
        """Copy the norm and the losses of this rank's passes to the host, once per update."""
        if self._values is None:
            device = self._norm.device
            self._values = torch.stack([scalar.to(device, torch.float32) for scalar in (self._norm, *self._losses)]).tolist()

        return self._values


def _host_waits_for(x: Tensor) -> bool:
    """Tell whether reading ``x`` keeps the host from queuing work; a CPU's is done by then."""
    return x.device.type != "cpu"


def _skips_on_device(optimizer: Optimizer) -> bool:
    """Tell whether the optimizer's kernels look at ``found_inf``: the fused ones of PyTorch do."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


@final
class _ObservedFacade(DataParallelFacade):
    """fairseq2's way to the data-parallel model; shows the norm of the gradients to the guard first."""

    def __init__(self, facade: DataParallelFacade, show_norm: Callable[[Tensor], Tensor]) -> None:
        self._facade = facade
        self._show_norm = show_norm

    @override
    def state_dict(self) -> dict[str, object]:
        return self._facade.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        self._facade.load_state_dict(state_dict)

    @override
    def no_sync(self) -> ContextManager[None]:
        return self._facade.no_sync()

    @override
    def clip_grad_norm(self, max_norm: float | None) -> Tensor:
        return self._show_norm(self._facade.clip_grad_norm(max_norm))

    @override
    def summon_full_parameters(self) -> ContextManager[None]:
        return self._facade.summon_full_parameters()
