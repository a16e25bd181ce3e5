"""Attention on a CPU computes what PyTorch's does, with dropout and with a bias that is learned."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from d2v_plugin.layers import attention
from d2v_plugin.layers.attention import attend
from d2v_plugin.models.data2vec1.archs import ARCHS as DATA2VEC1_ARCHS
from d2v_plugin.models.data2vec2.archs import ARCHS
from d2v_plugin.models.families import create_model


def draw_inputs(*shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    return [torch.randn(shape, generator=generator, requires_grad=True) for _ in range(3)]


@pytest.fixture(autouse=True, params=[2 * 4 * 11 * 11, 2 * 11 * 11, 11 * 11])
def small_pieces(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Two rows at a time, and one in the last piece; two heads of one row; one head."""
    monkeypatch.setattr(attention, "PIECE_SIZE", request.param)


@pytest.mark.parametrize("shape", [(5, 4, 11, 11), (1, 4, 11, 11), (5, 1, 1, 11), (4, 11, 11)])
def test_gradients_equal_those_of_pytorch(shape: tuple[int, ...]) -> None:
    q, k, v = draw_inputs(5, 4, 11, 8)
    bias = torch.randn(shape, requires_grad=True)

    ours = attend(q, k, v, bias, 0.0)
    theirs = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)

    assert torch.allclose(ours, theirs, atol=1e-6)
    inputs = (q, k, v, bias)
    ours, theirs = ours.square().sum(), theirs.square().sum()
    for a, b in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_bf16_is_as_near_to_fp32_as_pytorchs() -> None:
    torch.manual_seed(0)
    halves = [x.detach().bfloat16().requires_grad_(True) for x in draw_inputs(5, 4, 11, 8)]
    bias, grad = torch.randn(5, 4, 11, 11).bfloat16(), torch.randn(5, 4, 11, 8).bfloat16()
    exact = [x.detach().float().requires_grad_(True) for x in halves]
    expected = F.scaled_dot_product_attention(*exact, attn_mask=bias.float())
    expected_gradients = torch.autograd.grad(expected, exact, grad.float())

    def errors(output: Tensor) -> list[float]:
        """Root mean squares of the differences to fp32: of the output, and of the gradients of q, k and v."""
        assert output.dtype == torch.bfloat16
        pairs = [(output, expected), *zip(torch.autograd.grad(output, halves, grad), expected_gradients, strict=True)]
        return [float((a - b).detach().square().mean().sqrt()) for a, b in pairs]

    with torch.autocast("cpu", torch.bfloat16):
        output = attend(*halves, bias, 0.0)
    ours = errors(output)
    theirs = errors(F.scaled_dot_product_attention(*halves, attn_mask=bias))

    for a, b in zip(ours, theirs, strict=True):
        assert a < 1.3 * b


def test_padding_gets_no_attention_under_dropout() -> None:
    q, k, v = draw_inputs(5, 4, 11, 8)
    keep = torch.ones(5, 1, 1, 11, dtype=torch.bool)
    keep[:, :, :, 7:] = False
    torch.manual_seed(1)
    output = attend(q, k, v, keep, 0.3)
    torch.manual_seed(1)
    changed = attend(q, torch.cat([k[:, :, :7], k[:, :, 7:] + 9.0], dim=2), v, keep, 0.3)

    assert torch.equal(output, changed)


def test_dropout_is_that_of_its_seed_in_both_directions() -> None:
    """With one-hot values the output is the matrix of weights: it tells which were dropped; so do the values' gradients."""
    q, k, _ = draw_inputs(5, 4, 11, 11)
    v = torch.eye(11).expand(5, 4, 11, 11).clone().requires_grad_(True)
    whole = F.scaled_dot_product_attention(q, k, v).detach()
    torch.manual_seed(3)
    dropped = attend(q, k, v, None, 0.25)
    torch.manual_seed(3)
    again = attend(q, k, v, None, 0.25)

    assert torch.equal(dropped, again)
    factors = (dropped / whole).detach()
    is_kept = factors > 0.5
    assert torch.allclose(factors[is_kept], torch.tensor(1 / 0.75), atol=1e-3)
    assert 0.2 < 1 - is_kept.float().mean() < 0.3
    (gradient,) = torch.autograd.grad(dropped.sum(), v)
    assert torch.allclose(gradient[..., 0], dropped.detach().sum(dim=2), atol=1e-5)


def test_dropout_has_the_gradients_of_its_mask() -> None:
    """Finite differences in double precision are not offered, so PyTorch differentiates the same mask."""
    q, k, v = draw_inputs(5, 4, 11, 11)
    torch.manual_seed(3)
    factors = attend(q, k, torch.eye(11).expand(5, 4, 11, 11), None, 0.25) / F.scaled_dot_product_attention(
        q, k, torch.eye(11).expand(5, 4, 11, 11)
    )
    weights = (q @ k.transpose(-1, -2) / 11**0.5).softmax(dim=-1) * factors.detach()
    expected = torch.autograd.grad((weights @ v).square().sum(), (q, k, v))
    torch.manual_seed(3)
    actual = torch.autograd.grad(attend(q, k, v, None, 0.25).square().sum(), (q, k, v))

    for a, b in zip(actual, expected, strict=True):
        assert torch.allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("floating", [False, True])
def test_a_row_of_padding_only_is_zero_in_any_precision(dtype: torch.dtype, dropout: float, floating: bool) -> None:
    inputs = [x.detach().to(dtype).requires_grad_(True) for x in draw_inputs(3, 4, 11, 8)]
    keep = torch.ones(3, 1, 1, 11, dtype=torch.bool)
    keep[1] = False
    keep[2, ..., 7:] = False
    bias = torch.zeros(3, 4, 11, 11, dtype=dtype).masked_fill(~keep, -torch.inf) if floating else keep
    output = attend(*inputs, bias, dropout)
    gradients = torch.autograd.grad(output.float().square().sum(), inputs)

    assert not output[1].any() and output[2].isfinite().all() and output[2].any()
    assert all(gradient.isfinite().all() and not gradient[1].any() for gradient in gradients)


def test_what_is_not_finite_for_another_reason_stays_so() -> None:
    q, k, v = (x.detach().bfloat16() for x in draw_inputs(2, 4, 11, 8))
    q[0, 0, 0, 0] = torch.nan
    keep = torch.ones(2, 1, 1, 11, dtype=torch.bool)
    keep[1] = False

    output = attend(q, k, v, keep, 0.0)
    assert output[0, 0, 0].isnan().all() and not output[1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("modality", ["audio", "data2vec1"])
def test_long_inputs_give_the_same_features_in_pieces(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, modality: str) -> None:
    """Also of padded samples, under autocast and without."""
    torch.manual_seed(0)
    model = create_model(ARCHS["audio_tiny"]() if modality == "audio" else DATA2VEC1_ARCHS["audio_tiny"]()).eval()
    model.requires_grad_(False)
    inputs, padding_mask = torch.randn(2, 9000), torch.arange(9000) >= torch.tensor([[9000], [5000]])

    def extract() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            return model.extract_features(inputs, padding_mask).x.float().masked_fill(padding_of_frames, 0.0)

    padding_of_frames = torch.arange(27)[:, None] >= torch.tensor([27, 15])[:, None, None]
    whole = extract()
    monkeypatch.setattr(attention, "LONG", 2 * 4 * 27 * 16)
    torch.testing.assert_close(extract(), whole, atol=1e-5 if dtype is torch.float32 else 0.1, rtol=0.01)
