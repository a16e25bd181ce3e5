"""Packed batches have the features and the gradients of padded ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from d2v_plugin.layers import convolution, packing
from d2v_plugin.layers.attention import attend
from d2v_plugin.layers.packing import find_packing
from d2v_plugin.models import waveforms
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.models.data2vec1 import base as data2vec1
from d2v_plugin.models.data2vec1.archs import ARCHS as DATA2VEC1_ARCHS
from d2v_plugin.models.data2vec2.archs import ARCHS
from d2v_plugin.models.data2vec2.frontends import base as data2vec2
from d2v_plugin.models.families import create_model


def never(*args: Any) -> None:
    """In place of what packs: batches stay padded."""


def build(family: str, arch: str, **settings: Any) -> tuple[EncoderModel, Tensor, Tensor]:
    """A model, and a padded batch, of which one sample is as short as can be."""
    torch.manual_seed(0)
    config = (ARCHS if family == "data2vec2" else DATA2VEC1_ARCHS)[arch]()
    for name, value in settings.items():
        setattr(config, name, value)
    if arch == "audio_tiny":
        inputs, lengths = torch.randn(3, 9000), torch.tensor([[9000], [5000], [300]])
    else:
        inputs, lengths = torch.randint(5, 50, (3, 20)), torch.tensor([[20], [7], [1]])
    padding_mask = torch.arange(inputs.size(1)) >= lengths

    return create_model(config).eval(), inputs.masked_fill(padding_mask, 1), padding_mask


def compute(model: EncoderModel, inputs: Tensor, padding_mask: Tensor) -> list[Tensor]:
    """What is not padding of all outputs, and the gradients of all parameters."""
    features = model.extract_features(inputs, padding_mask, lengths=(~padding_mask).sum(dim=1))
    assert features.padding_mask is not None
    outputs = [x[~features.padding_mask] for x in (features.x, *features.layers)]
    outputs += [] if features.extra_tokens is None else [features.extra_tokens]
    total = sum((x.float() * torch.linspace(0, 1, x.numel()).view_as(x)).sum() for x in outputs)
    assert isinstance(total, Tensor)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    return [*outputs, *(x for x in torch.autograd.grad(total, parameters, allow_unused=True) if x is not None)]


def assert_equal(actual: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5 * max(1.0, float(b.detach().abs().max())))


@pytest.mark.parametrize("is_split", [True, False], ids=["one by one", "padded for attention"])
@pytest.mark.parametrize("arch", ["audio_tiny", "text_tiny"])
@pytest.mark.parametrize("family", ["data2vec1", "data2vec2"])
def test_packed_batches_equal_padded_ones(monkeypatch: pytest.MonkeyPatch, family: str, arch: str, is_split: bool) -> None:
    model, *batch = build(family, arch)
    if not is_split:
        monkeypatch.setattr(packing, "uses_own_kernels", lambda x: False)
    actual = compute(model, *batch)
    for room in (waveforms, convolution):
        monkeypatch.setattr(room, "wants_samples", never)
    for room in (data2vec1, data2vec2):
        monkeypatch.setattr(room, "find_packing", never)

    assert_equal(actual, compute(model, *batch))


def test_layers_see_the_valid_tokens_alone() -> None:
    """One row of 20 + 7 + 1 tokens in place of 3 x 20; but not where paths are dropped, which is drawn for each row."""
    for drop_path, shape in ((0.0, (1, 28)), (0.1, (3, 20))):
        model, *batch = build("data2vec2", "text_tiny", drop_path=(0.0, drop_path))
        seen: list[torch.Size] = []
        model.blocks[0].register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0].shape))
        model.train().extract_features(*batch)

        assert seen[0][:2] == shape


def test_dropout_of_packed_weights_is_that_of_their_sequence() -> None:
    """Values of one sequence never reach another; with dropout the others keep their sum on average."""
    found = find_packing(torch.arange(6) >= torch.tensor([[6], [2], [0]]))
    assert found is not None and found.lengths == [6, 2, 0]
    q = torch.randn(1, 2, 8, 4, generator=torch.Generator().manual_seed(0))
    v = torch.cat([torch.zeros(1, 2, 6, 4), torch.ones(1, 2, 2, 4)], dim=2)
    output = torch.stack([attend(q, q, v, packing.PackedBias(found, None), 0.5) for _ in range(400)]).mean(dim=0)

    assert not output[:, :, :6].any()
    assert torch.allclose(output[:, :, 6:], torch.ones(1), atol=0.3)


def test_padding_that_is_not_at_the_end_stays() -> None:
    assert find_packing(torch.tensor([[True, False, False], [False, False, False]])) is None
    assert find_packing(None) is None


def test_known_lengths_spare_the_look_at_the_mask() -> None:
    """On the meta device nobody could take one."""
    found = find_packing(torch.empty(3, 6, dtype=torch.bool, device="meta"), [6, 2, 0], 1)

    assert found is not None and found.lengths == [7, 3, 1] and found.pack(found.padding_mask[..., None]).shape == (1, 11, 1)


def test_compiled_blocks_take_packed_rows() -> None:
    """The audio model's bias, on a CPU and as on other devices."""
    model, *batch = build("data2vec2", "audio_tiny")
    expected = compute(model, *batch)
    for block in model.blocks:
        block.compile(backend="aot_eager")

    assert_equal(compute(model, *batch), expected)
