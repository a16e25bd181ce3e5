"""Comparison with the originals, shared by the tests of both generations; see tests/golden/README.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from d2v_plugin.core.contracts import LossOutput, StepInfo
from d2v_plugin.criteria.ema import EmaConfig
from d2v_plugin.training.optimizer import Data2VecAdamWConfig, build_adamw

GOLDEN = Path(__file__).parents[1] / "golden"
STEP = StepInfo(number=1, seed=1)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """max |a - b| / max(1, max |b|), the measure that golden/README.md proposes."""
    assert actual.shape == expected.shape
    error = (actual.detach().double() - expected.detach().double()).abs().max() / max(1.0, float(expected.detach().abs().max()))
    assert error <= tolerance, f"error {float(error):.2e}"


def strip_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def read_ema(settings: Mapping[str, Any], prefix: str = "") -> EmaConfig:
    """The original's schedule of the average."""
    start, end, steps = (settings[f"{prefix}{name}"] for name in ("ema_decay", "ema_end_decay", "ema_anneal_end_step"))

    return EmaConfig(start=start, end=end, anneal_steps=steps)


def assert_gradients(model: nn.Module, io: Mapping[str, Tensor]) -> None:
    """The same parameters have a gradient, and each is the original's."""
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    expected = strip_prefix(io, "grad/")
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert_close(gradient, expected[name])


def train(trace: Mapping[str, Any], model: nn.Module, criterion: Any, compute: Callable[[], LossOutput]) -> None:
    """Do what fairseq's trainer did, with its Adam and its schedules, and compare loss and gradient norm of each update.

    :param trace: its log and its settings.
    :param compute: the loss of the batch.
    """
    group = trace["param_groups"][0]
    optimizer = build_adamw(
        model,
        Data2VecAdamWConfig(
            betas=tuple(group["betas"]), eps=group["eps"], weight_decay=group["weight_decay"], decay_all=True, fairseq_eps=True
        ),
    )
    parameters = [p for p in model.parameters() if p.requires_grad]

    for i, update in enumerate(trace["log"], start=1):
        output = compute()
        (output.loss / output.num_targets).backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, trace["clip_norm"] or math.inf)
        assert output.loss.item() / output.num_targets == pytest.approx(update["loss"], rel=1e-4)
        assert float(norm) == pytest.approx(update["gnorm"], rel=1e-4)
        for param_group in optimizer.param_groups:
            param_group["lr"] = update["lr"]
        optimizer.step()
        optimizer.zero_grad()
        if i < len(trace["log"]):  # the original's teacher lags one update behind at the end
            criterion.after_step(model, i)
