"""Biases by distance inside of the attention kernel: the same numbers as from a matrix of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import StepInfo
from d2v_plugin.core.validation import ensure_valid
from d2v_plugin.criteria.data2vec2.criterion import Data2Vec2Config, Data2Vec2Criterion
from d2v_plugin.criteria.targets import TargetConfig
from d2v_plugin.layers.alibi import attention_biases, distance_weights, token_distances
from d2v_plugin.layers.attention import attend
from d2v_plugin.layers.distance_scores import computes_in_kernel, distance_scores
from d2v_plugin.masking.random_blocks import BlockMaskConfig, BlockMaskSampler
from d2v_plugin.models.data2vec2.archs import ARCHS
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.models.data2vec2.factory import create_model
from d2v_plugin.models.data2vec2.frontends import base
from d2v_plugin.models.parallel import compile_blocks

EXTRA = 2


@pytest.fixture(autouse=True)
def gradients_on_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The formula has them everywhere; PyTorch 2.11 refuses them on CPUs, for which it has no kernel with them."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *tensors: None)


@pytest.mark.parametrize(
    ("grid_width", "metric", "padded"), [(None, "manhattan", True), (4, "manhattan", False), (4, "euclidean", False)]
)
def test_attention_and_gradients_equal_those_with_a_bias(grid_width: int | None, metric: str, padded: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(2, 4, EXTRA + 7, 16, generator=generator) for _ in range(4))
    positions = torch.stack([torch.randperm(16, generator=generator)[:7] for _ in range(2)])
    padding_mask = torch.zeros(2, EXTRA + 7, dtype=torch.bool)
    padding_mask[1, -2:] = True
    scale = torch.linspace(0.2, 1.0, 4).view(1, 1, 4, 1, 1)
    inputs = [x.requires_grad_() for x in (q, k, v, scale)]

    distances = token_distances(positions, grid_width, metric)
    (bias,) = attention_biases(distances, scale, num_heads=4, num_extra_tokens=EXTRA)
    if padded:
        bias = bias.masked_fill(padding_mask[:, None, None], -torch.inf)
    (scores,) = distance_scores(
        positions,
        distance_weights(scale, 4),
        grid_width=grid_width,
        metric=metric,
        num_extra_tokens=EXTRA,
        padding_mask=padding_mask if padded else None,
    )

    def differentiate(output: Tensor) -> list[Tensor]:
        return [output, *torch.autograd.grad(output, inputs, grad)]

    expected, found = differentiate(attend(q, k, v, bias, 0.0)), differentiate(attend(q, k, v, scores, 0.0))
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= 1e-5 * max(1.0, float(other.detach().abs().max()))


def make_config() -> Data2VecConfig:
    config = ARCHS["audio_tiny"]()
    assert config.audio is not None and config.audio.alibi is not None
    config.depth = 2
    config.audio.alibi.in_kernel = True

    return config


def test_a_model_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*, compiled: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = create_model(make_config())
        sampler = BlockMaskSampler(BlockMaskConfig(ratio=0.5, block_size=3, adjust=0.05))
        settings = Data2Vec2Config(num_views=2, teacher_scope="context", targets=TargetConfig(num_layers=2))
        model.criterion = Data2Vec2Criterion(settings, {Modality.AUDIO: sampler})
        model.criterion.build(model)
        model.requires_grad_(True).train()
        if compiled:
            torch.compiler.reset()
            compile_blocks(model, backend="eager", fullgraph=True)
        padding_mask = torch.zeros(2, 4000, dtype=torch.bool)
        padding_mask[1, 3000:] = True
        batch = Batch(Modality.AUDIO, torch.randn(2, 4000), torch.arange(2), padding_mask, min_length=3000)
        output = model(batch, StepInfo(number=1, seed=1))
        (output.loss / output.num_targets).backward()

        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    expected = run(compiled=False)
    monkeypatch.setattr(base, "computes_in_kernel", lambda x: True)
    monkeypatch.setattr(base, "attention_biases", None)
    found = run(compiled=True)

    assert expected.keys() == found.keys() and "modality_encoders.AUDIO.alibi_scale" in found
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 1e-5 * max(1.0, float(gradient.abs().max())), name


def test_dropout_of_weights_is_refused_and_a_cpu_has_no_such_kernel() -> None:
    config = make_config()
    config.attention_dropout = 0.1

    with pytest.raises(ValueError, match=r"`audio.alibi.in_kernel` needs `attention_dropout: 0`, but it is 0.1."):
        ensure_valid(config)
    assert not computes_in_kernel(torch.zeros(()))
