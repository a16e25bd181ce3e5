"""Observers are told of every update once, in the order of their list, and of what the guard decided."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq2.nn.data_parallel import DataParallelFacade, get_data_parallel_facade, set_data_parallel_facade
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from typing_extensions import override

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import LossOutput, StepInfo
from d2v_plugin.criteria.base import Criterion
from d2v_plugin.models.data2vec2.archs import ARCHS
from d2v_plugin.models.families import create_model
from d2v_plugin.training.health import update_guard
from d2v_plugin.training.health.update_guard import UpdateGuard
from d2v_plugin.training.observers import EmaObserver, Observer


class Facade(DataParallelFacade):
    """That of a model on one device."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def state_dict(self) -> dict[str, object]:
        return {"weights": self._module.state_dict()}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        self._module.load_state_dict(state_dict["weights"])  # type: ignore[arg-type]

    def no_sync(self) -> Any:
        raise NotImplementedError

    def clip_grad_norm(self, max_norm: float | None) -> Tensor:
        return torch.nn.utils.clip_grad_norm_(self._module.parameters(), max_norm or math.inf)

    def summon_full_parameters(self) -> Any:
        raise NotImplementedError


class Recorder(Observer):
    """Writes down what it is told, and the weight at that time."""

    def __init__(self, name: str, events: list[tuple[Any, ...]], model: nn.Linear) -> None:
        self._name = name
        self._events = events
        self._model = model

    @override
    def before_update(self, step_nr: int) -> None:
        self._events.append((self._name, "before", step_nr))

    @override
    def after_forward(self, batch: Batch, output: LossOutput) -> None:
        self._events.append((self._name, "forward", batch.ids.tolist(), self._model.weight.item()))

    @override
    def after_update(self, step_nr: int, *, norm: float, losses: Sequence[float], skipped: bool) -> None:
        self._events.append((self._name, "after", step_nr, norm, list(losses), skipped, self._model.weight.item()))


class Run:
    """Updates as fairseq2's trainer computes them, of y = w · x with w = 1 at first and the loss y."""

    def __init__(self, create_optimizer: Any) -> None:
        self.model = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.model.weight)
        self.optimizer: Optimizer = create_optimizer(self.model.parameters())
        self.events: list[tuple[Any, ...]] = []
        recorders = [Recorder(name, self.events, self.model) for name in ("first", "second")]
        self.guard = UpdateGuard(recorders, rank=0)
        set_data_parallel_facade(self.model, Facade(self.model))
        self.guard.attach(self.model, self.optimizer)

    def update(self, step_nr: int, *passes: float, found_inf: Tensor | None = None) -> float:
        self.guard.before_update(step_nr)
        for x in passes:
            output = LossOutput(self.model(torch.tensor([[x]])).sum(), num_targets=2)
            batch = Batch(Modality.IMAGE, torch.zeros(1, 1), torch.tensor([round(x) if math.isfinite(x) else -1]))
            self.guard.after_forward(batch, output).backward()
        norm = get_data_parallel_facade(self.model).clip_grad_norm(None)
        if found_inf is not None:
            self.optimizer.found_inf = found_inf  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

        return float(norm)


def plain(parameters: Any) -> Optimizer:
    return SGD(parameters, lr=0.25)


def fused(parameters: Any) -> Optimizer:
    return AdamW(parameters, lr=0.25, weight_decay=0.0, fused=True)


def test_every_event_goes_through_the_list_in_its_order() -> None:
    run = Run(plain)

    run.update(7, 2.0, 4.0)

    told = [("before", 7), ("forward", [2], 1.0), ("forward", [4], 1.0), ("after", 7, 6.0, [1.0, 2.0], False, 1.0 - 0.25 * 6.0)]
    assert run.events == [(name, *event) for event in told for name in ("first", "second")]


@pytest.mark.parametrize("create_optimizer", [plain, fused])
def test_a_skipped_update_is_told_as_such(create_optimizer: Any) -> None:
    run = Run(create_optimizer)
    shown = [run.update(1, 2.0), run.update(2, math.inf), run.update(3, 2.0)]

    ends = [event for event in run.events if event[:2] == ("second", "after")]
    assert [event[2] for event in ends] == [1, 2, 3] and [event[5] for event in ends] == [False, True, False]
    weights = [event[6] for event in ends]
    assert weights[0] < 1.0 and weights[1] == weights[0] and weights[2] < weights[1]
    assert math.isnan(ends[1][3]) and ends[1][4] == [math.inf]
    assert shown[1] == shown[0], "the trainer's metric gets the last norm that was finite"
    assert run.guard.num_skipped == 1


def test_an_overflow_that_the_loss_scaler_found_is_no_update() -> None:
    """fairseq2 repeats it with the same number."""
    run = Run(fused)

    run.update(1, math.inf, found_inf=torch.tensor(1.0))
    assert [event[1] for event in run.events[::2]] == ["before", "forward"] and run.guard.num_skipped == 0
    del run.optimizer.found_inf  # type: ignore[attr-defined]
    run.update(1, 2.0)

    assert next(event[2:4] for event in run.events if event[:2] == ("first", "after")) == (1, 2.0)


class Follower(Criterion[Any]):
    """Writes down which updates it is told of, and the weight at that time."""

    def __init__(self, followed: list[tuple[int, float]], model: nn.Linear) -> None:
        super().__init__()
        self._followed = followed
        self._weight = model.weight

    @override
    def forward(self, model: Any, batch: Batch, step: StepInfo) -> LossOutput:
        raise NotImplementedError

    @override
    def after_step(self, model: Any, step_nr: int) -> None:
        self._followed.append((step_nr, self._weight.item()))


def test_the_teacher_follows_what_was_done_and_not_what_was_skipped() -> None:
    followed: list[tuple[int, float]] = []
    run = Run(plain)
    model = create_model(ARCHS["image_tiny"]())
    model.criterion = Follower(followed, run.model)
    run.guard.observers = [EmaObserver(model), *run.guard.observers]

    for step, x in enumerate([2.0, math.nan, 2.0], start=1):
        run.update(step, x)

    assert followed == [(1, 0.5), (3, 0.0)]


class Queuer(Follower):
    """On a GPU it does so before anybody knows whether the update counts."""

    @override
    def queue_after_step(self, model: Any, step_nr: int, skip: Tensor) -> bool:
        self._followed.append((step_nr, -skip.item()))

        return True


@pytest.mark.parametrize(
    ("criterion", "optimizer", "followed"),
    [
        (Queuer, fused, [(1, 0.0), (2, -1.0), (3, 0.0)]),
        (Follower, fused, [(1, 0.75), (3, 0.5)]),
        (Queuer, plain, [(1, 0.5), (3, 0.0)]),
    ],
)
def test_where_the_host_waits_the_teacher_is_queued_before(
    monkeypatch: pytest.MonkeyPatch, criterion: type[Follower], optimizer: Any, followed: list[tuple[int, float]]
) -> None:
    """Where the optimizer can leave out an update on the device, for a criterion that can, too."""
    monkeypatch.setattr(update_guard, "_host_waits_for", lambda x: True)
    told: list[tuple[int, float]] = []
    run = Run(optimizer)
    model = create_model(ARCHS["image_tiny"]())
    model.criterion = criterion(told, run.model)
    run.guard.observers = [EmaObserver(model)]
    read = run.guard._read
    monkeypatch.setattr(run.guard, "_read", lambda: told.append((0, 0.0)) or read())

    for step, x in enumerate([2.0, math.nan, 2.0], start=1):
        run.update(step, x)

    if criterion is Queuer and optimizer is fused:
        assert [step for step, _ in told] == [1, 0, 2, 0, 3, 0]
    assert [(step, round(value, 5)) for step, value in told if step] == followed


def test_a_run_has_the_written_order(command: Any, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    attach = UpdateGuard.attach

    def note(guard: UpdateGuard, *args: Any) -> None:
        names.extend(type(observer).__name__ for observer in guard.observers)
        attach(guard, *args)

    monkeypatch.setattr(UpdateGuard, "attach", note)
    settings = ("regime.num_steps=2", "pictures.enabled=true")
    outcome = command("recipe", "train", "--config-file", tiny_recipe, tmp_path / "out", "--config", *settings)

    assert outcome.status == 0, outcome.err
    assert torch.backends.cudnn.benchmark, "images have one size"
    watchers = ["SkipObserver", "SpikeObserver", "TrainingScreen", "CollapseObserver", "MemoryObserver"]
    assert names == ["EmaObserver", "HoldObserver", "Incidents", *watchers, "PictureRecorder", "Summarizer"]
