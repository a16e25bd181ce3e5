"""The optimizer decays what should be decayed, and can be exact to fairseq's Adam."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from d2v_plugin.training.optimizer import Data2VecAdamWConfig, build_adamw, group_parameters

DECAY = Data2VecAdamWConfig(weight_decay=0.1)
DECAY_ALL = Data2VecAdamWConfig(weight_decay=0.1, decay_all=True)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.norm = nn.LayerNorm(3)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 3))
        self.alibi_scale = nn.Parameter(torch.ones(1, 1, 2, 1, 1))
        self.teacher = nn.Linear(4, 3).requires_grad_(False)


def names_of(model: nn.Module, group: dict[str, object]) -> set[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    return {names[id(parameter)] for parameter in group["params"]}  # type: ignore[attr-defined]


def test_only_matrices_are_decayed() -> None:
    model = Net()

    decayed, kept = group_parameters(model, DECAY)

    assert names_of(model, decayed) == {"linear.weight"} and decayed["weight_decay"] == 0.1
    assert names_of(model, kept) == {"linear.bias", "norm.weight", "norm.bias", "cls_token", "alibi_scale"}
    assert kept["weight_decay"] == 0.0


def test_tokens_are_decayed_if_they_are_named() -> None:
    model = Net()

    decayed, kept = group_parameters(model, Data2VecAdamWConfig(weight_decay=0.1, decay_tokens=["cls_token"]))

    assert names_of(model, decayed) == {"linear.weight", "cls_token"}
    assert "alibi_scale" in names_of(model, kept)


def test_frozen_parameters_are_left_out() -> None:
    model = Net()

    for groups in (group_parameters(model, DECAY), group_parameters(model, DECAY_ALL)):
        assert not any(name.startswith("teacher") for group in groups for name in names_of(model, group))


def test_decay_all_makes_one_group_as_the_original_did() -> None:
    (group,) = group_parameters(Net(), DECAY_ALL)

    assert len(group["params"]) == 6 and group["weight_decay"] == 0.1


def test_prefixes_of_wrappers_do_not_change_the_groups() -> None:
    model = Net()
    wrapper = nn.ModuleDict({"module": nn.ModuleDict({"_checkpoint_wrapped_module": model})})

    plain, wrapped = group_parameters(model, DECAY), group_parameters(wrapper, DECAY)

    assert [[id(p) for p in group["params"]] for group in plain] == [[id(p) for p in group["params"]] for group in wrapped]


def fairseq_adam(p: Tensor, gradients: list[Tensor], *, lr: float, betas: tuple[float, float], eps: float, wd: float) -> Tensor:
    """The update as fairseq/optim/adam.py computes it, written out."""
    p, m, v = p.clone(), torch.zeros_like(p), torch.zeros_like(p)
    for t, g in enumerate(gradients, start=1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        p = p - lr * wd * p
        p = p - lr * math.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t) * m / (v.sqrt() + eps)

    return p


def run_updates(config: Data2VecAdamWConfig, start: Tensor, gradients: list[Tensor], *, resume_after: int = 0) -> Tensor:
    model = nn.Linear(5, 4, bias=False, dtype=torch.float64)
    model.weight.data = start.clone()
    optimizer = build_adamw(model, config)
    for t, gradient in enumerate(gradients):
        if t == resume_after > 0:
            state = optimizer.state_dict()
            optimizer = build_adamw(model, config)
            optimizer.load_state_dict(state)
        model.weight.grad = gradient.clone()
        optimizer.step()

    return model.weight.detach()


@pytest.mark.parametrize("impl", ["naive", "foreach"])
@pytest.mark.parametrize("resume_after", [0, 2])
def test_fairseq_eps_equals_fairseq_adam_also_after_a_resume(impl: str, resume_after: int) -> None:
    torch.manual_seed(0)
    start = torch.randn(4, 5, dtype=torch.float64)
    gradients = [torch.randn(4, 5, dtype=torch.float64) * 1e-3 for _ in range(5)]
    config = Data2VecAdamWConfig(lr=1e-2, eps=1e-3, weight_decay=0.1, fairseq_eps=True, impl=impl)  # type: ignore[arg-type]

    expected = fairseq_adam(start, gradients, lr=1e-2, betas=(0.9, 0.98), eps=1e-3, wd=0.1)

    torch.testing.assert_close(run_updates(config, start, gradients, resume_after=resume_after), expected, rtol=0, atol=1e-12)

    # The two ways of adding epsilon differ visibly here, so the comparison above can fail.
    config.fairseq_eps = False
    assert (run_updates(config, start, gradients) - expected).abs().max() > 1e-4


@pytest.mark.parametrize("field", [{"lr": -1.0}, {"betas": (0.9, 1.0)}, {"eps": 0.0}, {"weight_decay": -0.1}])
def test_impossible_settings_are_named(field: dict[str, object]) -> None:
    (name,) = field

    assert f"`{name}`" in str(Data2VecAdamWConfig(**field).validate())  # type: ignore[arg-type]


def test_moments_have_their_memory_before_the_first_update_and_change_nothing() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Linear(5, 4), nn.Linear(5, 4)
    theirs.load_state_dict(ours.state_dict())
    optimizer = build_adamw(ours, Data2VecAdamWConfig(lr=1e-2))
    lazy = torch.optim.AdamW(group_parameters(theirs, Data2VecAdamWConfig(lr=1e-2)), betas=(0.9, 0.98), eps=1e-6, fused=True)
    addresses = [moments["exp_avg"].data_ptr() for moments in optimizer.state.values()]

    for _ in range(3):
        x = torch.randn(6, 5)
        for model, adamw in ((ours, optimizer), (theirs, lazy)):
            model.zero_grad()
            model(x).square().sum().backward()
            adamw.step()

    assert len(addresses) == 2
    assert addresses == [moments["exp_avg"].data_ptr() for moments in optimizer.state.values()]
    assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)
    assert [moments.keys() for moments in optimizer.state.values()] == [moments.keys() for moments in lazy.state.values()]
