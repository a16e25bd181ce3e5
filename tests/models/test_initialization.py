from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from d2v_plugin.models.base import EncoderModel, find_part
from d2v_plugin.models.data2vec1.archs import ARCHS as ARCHS_OF_1
from d2v_plugin.models.data2vec2.archs import ARCHS
from d2v_plugin.models.families import AnyConfig, create_model

TINY = [
    *(ARCHS[f"{name}_tiny"]() for name in ("audio", "image", "text")),
    *(ARCHS_OF_1[f"{name}_tiny"]() for name in ("audio", "text")),
]


def create(config: AnyConfig) -> EncoderModel:
    torch.manual_seed(1)
    return create_model(config)


def last_linears(model: EncoderModel) -> list[nn.Linear]:
    names = [*model.prediction_modules, "encoder.regression_head"]
    parts = [part for name in names if isinstance(part := find_part(model, name), nn.Module)]
    return [[module for module in part.modules() if isinstance(module, nn.Linear)][-1] for part in parts]


@pytest.mark.parametrize("config", TINY, ids=lambda config: f"{type(config).__name__}-{next(iter(config.frontends)).value}")
def test_a_scale_of_0_makes_the_first_predictions_zero_and_changes_nothing_else(config: AnyConfig) -> None:
    plain, scaled = create(config), create(replace(config, prediction_init_scale=0.0))

    heads = {id(parameter) for linear in last_linears(scaled) for parameter in linear.parameters()}
    assert heads
    for (name, before), after in zip(plain.named_parameters(), scaled.parameters(), strict=True):
        expected = torch.zeros_like(before) if id(after) in heads else before
        assert torch.equal(after, expected), name


@pytest.mark.parametrize("scale", [-0.5, float("nan"), float("inf")])
def test_other_scales_are_refused(scale: float) -> None:
    for config in TINY[0], TINY[-1]:
        with pytest.raises(ValueError, match="`prediction_init_scale` must be between 0 and 1e6"):
            create_model(replace(config, prediction_init_scale=scale))
