"""Guards updates: a loss or gradient that is not finite, on any rank, changes nothing on any rank.

The ranks agree without a message of their own. A loss that is not finite makes all gradients of its rank NaN; the all-reduce of
DDP and the reduce-scatter of FSDP carry that, like any gradient that is not finite, to all ranks; and the norm of all gradients,
which fairseq2's trainer computes in every update whether it clips or not, is then not finite on all of them. So is a norm that
overflows although each gradient is finite.

Fused optimizers, which are the default, leave out the update on the device, and the host reads the norm after it has queued the
optimizer's work, where fairseq2's trainer waits for the device in any case. For others the host has to know the norm before.

A skipped update counts as done: the next has the next number, the next samples, learning rate and EMA decay. Weights, moments of
the optimizer and the teacher stay as they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from fairseq2.logging import log
from fairseq2.metrics import MetricBag, Sum
from fairseq2.nn.data_parallel import DataParallelFacade, get_data_parallel_facade, set_data_parallel_facade
from fairseq2.recipe.error import RecipeError
from fairseq2.typing import ContextManager
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import LossOutput
from d2v_plugin.training.health.collapse import CollapseWatch
from d2v_plugin.training.health.incidents import Pass, Suspects
from d2v_plugin.training.health.spikes import SpikeDetector
from d2v_plugin.training.optimizer import forget_update

MAX_SKIPPED_IN_A_ROW: Final = 3

SKIPPED_UPDATES: Final = "total_skipped_updates"
"""The metric: how many updates of the run were skipped."""


@dataclass(kw_only=True)
class GuardSection:
    """What is watched while a run trains; that nothing follows from a loss that is not finite needs no setting."""

    collapse_every_n_steps: int | None = 100
    """Look for collapsed targets, predictions and local features every so many updates; null = never."""

    def __post_init__(self) -> None:
        every = self.collapse_every_n_steps
        if every is not None and every < 1:
            raise ValueError(f"`collapse_every_n_steps` must be positive or null, but is {every}.")


def create_watch(section: GuardSection, rank: int) -> CollapseWatch | None:
    """The collapse watch; one rank is enough, they collapse together."""
    every = section.collapse_every_n_steps

    return CollapseWatch(every) if every is not None and rank == 0 else None


@final
class UpdateGuard:
    """Decides which updates count, and reports those that look wrong."""

    def __init__(self, suspects: Suspects, collapse: CollapseWatch | None, *, rank: int) -> None:
        """
        :param suspects: takes down the samples of what is reported.
        :param collapse: looks for collapse; None = nobody does.
        :param rank: of all ranks one counts.
        """
        self._suspects = suspects
        self._collapse = collapse
        self._rank = rank
        self._step_nr = 0
        self._passes: list[Pass] = []
        self._norm = self._shown_norm = torch.zeros(())
        self._values: list[float] | None = None
        self._losses: dict[Modality, SpikeDetector] = {}
        self._norms: dict[Modality, SpikeDetector] = {}
        self._metric_bag: MetricBag | None = None
        self._skipped_in_a_row: list[int] = []
        self._owns_found_inf = False
        self.num_skipped = 0

    def prepare_metric_bag(self, metric_bag: MetricBag) -> None:
        """Add the metric that counts skipped updates."""
        metric_bag.add(SKIPPED_UPDATES, Sum())
        self._metric_bag = metric_bag

    def attach(self, model: nn.Module, optimizer: Optimizer, after_step: Callable[[int], None]) -> None:
        """Step between fairseq2's trainer and the optimizer.

        :param model: the data-parallel wrapper.
        :param after_step: called with the number of each update that was not skipped, before that update's checkpoint.
        """
        set_data_parallel_facade(model, _ObservedFacade(get_data_parallel_facade(model), self._take_norm))
        optimizer.register_step_pre_hook(self._before_step)

        def post_hook(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            self._after_step(optimizer, after_step)

        optimizer.register_step_post_hook(post_hook)

    # The course of an update

    def begin(self, step_nr: int) -> None:
        """Called before the first forward pass of an update."""
        self._step_nr = step_nr
        self._passes = []
        self._values = None

    def take_loss(self, batch: Batch, output: LossOutput) -> Tensor:
        """Called with each forward pass.

        :returns: the loss to go backward from; a finite one is unchanged.
        """
        loss = output.loss
        self._passes.append(Pass(batch.modality, batch.ids, loss.detach() / output.num_targets))
        if self._collapse is not None and len(self._passes) == 1 and self._collapse.is_due(self._step_nr):
            self._collapse.look(output.observation)

        # NaN times anything is NaN, also where the gradient would be finite or zero.
        return loss * torch.where(loss.detach().isfinite(), 1.0, math.nan)

    def add_values(self, values: MutableMapping[str, object]) -> None:
        """Called when metrics are published: what the collapse watch saw last."""
        signs = {} if self._collapse is None else self._collapse.last
        if "targets" in signs:
            values["target_rank"] = signs["targets"].rank
        if "local features" in signs:
            values["local_rank"] = signs["local features"].rank
            values["local_deviation"] = signs["local features"].deviation

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

    def _after_step(self, optimizer: Optimizer, after_step: Callable[[int], None]) -> None:
        is_scaled = _skips_on_device(optimizer) and not self._owns_found_inf
        if self._owns_found_inf:
            del optimizer.found_inf  # type: ignore[attr-defined]
            self._owns_found_inf = False

        norm, *losses = self._read()
        if math.isfinite(norm):
            self._skipped_in_a_row = []
            after_step(self._step_nr)
            self._look_for_spikes(norm, losses)
        else:
            if _skips_on_device(optimizer):
                forget_update(optimizer)
            # An overflow of fp16 gradients is part of finding the scale: fairseq2 counts and repeats those updates.
            if not is_scaled:
                self._report_skipped(norm, losses)
        if self._collapse is not None:
            self._collapse.judge(self._step_nr)

        self._passes = []

    def _read(self) -> list[float]:
        """The norm and the losses of this rank's passes: one copy, once per update."""
        if self._values is None:
            device = self._norm.device
            scalars = [self._norm, *(taken.loss for taken in self._passes)]
            self._values = torch.stack([scalar.to(device, torch.float32) for scalar in scalars]).tolist()

        return self._values

    # Reports

    def _report_skipped(self, norm: float, losses: list[float]) -> None:
        self.num_skipped += 1
        self._skipped_in_a_row.append(self._step_nr)
        if self._rank == 0 and self._metric_bag is not None:
            self._metric_bag.get(SKIPPED_UPDATES, Sum).update(1)

        listed = self._suspects.add(self._step_nr, "not_finite", self._passes, losses, norm)
        log.warning("Skipped update {}, the {}. of {} in a row that end the run: gradient norm {:g}, loss of this rank {:g}; {}.", self._step_nr, len(self._skipped_in_a_row), MAX_SKIPPED_IN_A_ROW, norm, _mean(losses), listed)  # fmt: skip  # noqa: E501
        if len(self._skipped_in_a_row) == MAX_SKIPPED_IN_A_ROW:
            first = self._skipped_in_a_row[0]
            raise RecipeError(
                f"A loss or gradient is not finite at step {self._step_nr}, as in every step since {first}: "
                f"{MAX_SKIPPED_IN_A_ROW} in a row, none of which was done. Their samples are listed in "
                f"{self._suspects.pattern}. Lower `optimizer.config.lr`, lengthen the warm-up or set `trainer.max_grad_norm`; "
                "the same command continues from the last checkpoint."
            )

    def _look_for_spikes(self, norm: float, losses: list[float]) -> None:
        modality = self._passes[0].modality  # all passes of an update are of one
        for event, detectors, value in (("loss_spike", self._losses, _mean(losses)), ("gradient_spike", self._norms, norm)):
            detector = detectors.setdefault(modality, SpikeDetector())
            spike = detector.add(value)
            if spike is not None and detector.may_speak(self._step_nr):
                listed = self._suspects.add(self._step_nr, event, self._passes, losses, norm)
                what = "Loss of this rank" if event == "loss_spike" else "Gradient norm"
                log.warning("{} {:.4g} at update {} is far above its recent {:.4g} (spread {:.2g}); {}.", what, value, self._step_nr, spike.median, spike.spread, listed)  # fmt: skip  # noqa: E501


def _skips_on_device(optimizer: Optimizer) -> bool:
    """Whether the optimizer's kernels look at ``found_inf``: the fused ones of PyTorch do."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


@final
class _ObservedFacade(DataParallelFacade):
    """How fairseq2's trainer reaches the data-parallel model; shows the norm of the gradients to somebody else first."""

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
