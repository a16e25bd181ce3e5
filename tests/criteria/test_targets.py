"""Normalisation and averaging of the teacher's layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from d2v_plugin.criteria.targets import TargetConfig, make_targets

NORMS = ["batch_norm_layers", "instance_norm_layers", "group_norm_layers", "layer_norm_layers", "layer_norm", "instance_norm"]


def only(*names: str) -> TargetConfig:
    return TargetConfig(**{name: name in names for name in NORMS})


@pytest.fixture
def layers() -> list[Tensor]:
    torch.manual_seed(0)

    return [3 * torch.randn(2, 7, 5) + torch.randn(5) for _ in range(3)]


def instance_norm(x: Tensor) -> Tensor:
    return F.instance_norm(x.transpose(1, 2)).transpose(1, 2)


def test_norms_of_layers_are_those_of_pytorch(layers: list[Tensor]) -> None:
    def batch_norm(x: Tensor) -> Tensor:
        return F.batch_norm(x.flatten(0, 1), None, None, training=True).view_as(x)

    for name, norm in {
        "batch_norm_layers": batch_norm,
        "instance_norm_layers": instance_norm,
        "group_norm_layers": lambda x: F.layer_norm(x, (7, 5)),
        "layer_norm_layers": lambda x: F.layer_norm(x, (5,)),
    }.items():
        expected = torch.stack([norm(layer) for layer in layers]).mean(dim=0)
        assert torch.allclose(make_targets(only(name), layers), expected, atol=1e-5), name


def test_norms_of_the_average_come_last(layers: list[Tensor]) -> None:
    average = torch.stack(layers).mean(dim=0)

    assert torch.allclose(make_targets(only(), layers), average, atol=1e-6)
    assert torch.allclose(make_targets(only("layer_norm"), layers), F.layer_norm(average, (5,)), atol=1e-5)
    both = instance_norm(F.layer_norm(average, (5,)))
    assert torch.allclose(make_targets(only("layer_norm", "instance_norm"), layers), both, atol=1e-5)


def test_the_original_takes_norms_over_the_batch_where_nothing_transposes_the_layers(layers: list[Tensor]) -> None:
    """fairseq's layers of speech have the time first; what should be a sample is a position then."""
    average = torch.stack([F.layer_norm(layer.transpose(0, 1), (2, 5)) for layer in layers]).mean(dim=0)
    expected = F.instance_norm(average.transpose(1, 2)).permute(2, 0, 1)

    config = only("group_norm_layers", "instance_norm")
    config.original_axes = True
    assert torch.allclose(make_targets(config, layers), expected, atol=1e-5)

    padding_mask = torch.zeros(2, 7, dtype=torch.bool)
    padding_mask[:, 6] = True
    assert make_targets(config, layers, padding_mask)[:, :6].allclose(expected[:, :6], atol=1e-5)
    assert make_targets(config, layers, padding_mask).isfinite().all()


@pytest.mark.parametrize("name", NORMS)
def test_padding_does_not_change_targets(name: str, layers: list[Tensor]) -> None:
    """Batch norm sees the valid tokens of all samples, the others those of the sample."""
    padding_mask = torch.zeros(2, 9, dtype=torch.bool)
    padding_mask[:, 7:] = True
    padded = [F.pad(layer, (0, 0, 0, 2), value=100.0) for layer in layers]

    targets = make_targets(only(name), padded, padding_mask)

    assert torch.allclose(targets[:, :7], make_targets(only(name), layers), atol=1e-5)


def test_targets_are_fp32_whatever_the_teacher_computes_in(layers: list[Tensor]) -> None:
    assert make_targets(TargetConfig(), [layer.bfloat16() for layer in layers]).dtype == torch.float32


def test_layers_that_stay_apart_are_what_would_be_averaged(layers: list[Tensor]) -> None:
    apart = make_targets(TargetConfig(separate_layers=True), layers)

    torch.testing.assert_close(
        apart.unflatten(-1, (len(layers), -1)).mean(dim=-2), make_targets(TargetConfig(), layers), atol=1e-5, rtol=1e-5
    )
