"""What is hidden in fine-tuning depends on the seed, the step and the recording, and on nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import StepInfo
from d2v_plugin.core.random import row_keys
from d2v_plugin.criteria.supervised.feature_masks import (
    FeatureMaskConfig,
    draw_frame_mask,
    draw_spans,
    extract_masked,
    hide_channels,
)
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.models.data2vec1.audio import Data2VecAudioModel
from d2v_plugin.models.data2vec1.config import AudioConfig, Data2Vec1ModelConfig
from d2v_plugin.models.data2vec2.archs import ARCHS
from d2v_plugin.models.data2vec2.model import Data2VecModel

STEP = StepInfo(number=3, seed=1)
LONG, SHORT = 16_000, 9_000


def make_models() -> dict[str, EncoderModel]:
    torch.manual_seed(0)
    audio = AudioConfig(conv_layers=[(32, 10, 5), *[(32, 3, 2)] * 4, *[(32, 2, 2)] * 2], position_groups=8)
    first = Data2Vec1ModelConfig(
        audio=audio, dim=32, ffn_dim=64, depth=2, num_heads=2, dropout=0.0, attention_dropout=0.0, head_layers=0
    )

    return {"data2vec": Data2VecModel(ARCHS["audio_tiny"]()), "data2vec1": Data2VecAudioModel(first, audio)}


MODELS = make_models()


def make_keys(count: int = 400) -> Tensor:
    return row_keys(1, 1, torch.arange(count), num_views=1)


def test_a_recording_is_masked_alike_in_any_batch() -> None:
    config = FeatureMaskConfig()
    keys = make_keys(8)
    padding_mask = torch.arange(120) >= torch.tensor([120, 100, 60, 60, 31, 11, 10, 4]).unsqueeze(1)
    together = draw_frame_mask(keys, 120, padding_mask, config)

    for row, length in enumerate((~padding_mask).sum(dim=1).tolist()):
        alone = draw_frame_mask(keys[row : row + 1], length, None, config)
        assert torch.equal(together[row, :length], alone[0])
    assert not (together & padding_mask).any()


def test_spans_have_their_length_and_rows_keep_something_visible() -> None:
    mask = draw_frame_mask(make_keys(), 50, None, FeatureMaskConfig(probability=0.3, length=10))
    edges = torch.nn.functional.pad(mask.int(), (1, 1)).diff(dim=1)
    starts, ends = (edges == 1).nonzero()[:, 1], (edges == -1).nonzero()[:, 1]

    assert (ends - starts).min() == 10
    assert mask.any(dim=1).all() and not mask.all(dim=1).any()
    # One span would cover all of it.
    assert not draw_frame_mask(make_keys(), 10, None, FeatureMaskConfig(probability=0.9, length=10)).any()


@pytest.mark.parametrize(("probability", "length", "size"), [(0.65, 10, 300), (0.5, 64, 768), (0.3, 3, 20)])
def test_as_much_is_masked_as_by_the_original(probability: float, length: int, size: int) -> None:
    """fairseq's ``compute_mask_indices``: int(p·S/ℓ + u) different starts, each with ℓ positions."""
    random = np.random.default_rng(0)
    expected = []
    for _ in range(2000):
        row = np.zeros(size, dtype=bool)
        for start in random.choice(size - length, int(probability * size / length + random.random()), replace=False):
            row[start : start + length] = True
        expected.append(row.mean())
    mask = draw_frame_mask(make_keys(2000), size, None, FeatureMaskConfig(probability=probability, length=length))

    assert mask.float().mean() == pytest.approx(np.mean(expected), rel=0.03)


def test_another_step_seed_or_recording_draws_another_mask() -> None:
    ids, config = torch.tensor([7]), FeatureMaskConfig()
    masks = {
        tuple(draw_frame_mask(row_keys(seed, step, ids + more, num_views=1), 200, None, config)[0].tolist())
        for seed, step, more in ((1, 1, 0), (2, 1, 0), (1, 2, 0), (1, 1, 1))
    }

    assert len(masks) == 4


def test_channels_are_hidden_in_all_frames() -> None:
    x = hide_channels(torch.ones(400, 5, 768), make_keys(), FeatureMaskConfig(channel_probability=0.5, channel_length=64))

    assert torch.equal(x, x[:, :1].expand_as(x))
    assert 0.3 < float((x == 0).float().mean()) < 0.5
    assert torch.equal(hide_channels(x, make_keys(), FeatureMaskConfig(channel_probability=0.0)), x)


def test_no_spans_are_drawn_at_probability_0() -> None:
    ranks, lengths = torch.rand(4, 30), torch.full((4, 1), 30)
    assert not draw_spans(ranks, torch.full((4, 1), 0.99), lengths, 0.0, 5, at_least=0).any()


@pytest.mark.parametrize("family", ["data2vec", "data2vec1"])
def test_padding_does_not_change_masked_features(family: str) -> None:
    """The mask, the noise and what the encoder makes of them are those of the recording alone."""
    model = MODELS[family].eval()
    waveforms = torch.randn(2, LONG)
    padding_mask = torch.arange(LONG) >= torch.tensor([[LONG], [SHORT]])
    together = Batch(Modality.AUDIO, waveforms.masked_fill(padding_mask, 0.0), torch.tensor([5, 6]), padding_mask, SHORT)
    alone = Batch(Modality.AUDIO, waveforms[1:, :SHORT], torch.tensor([6]))
    config = FeatureMaskConfig(channel_length=8)
    with torch.no_grad():
        first, second = (extract_masked(model, batch, STEP, config).x for batch in (together, alone))
        plain = model.extract_features(alone.inputs).x

    torch.testing.assert_close(first[1, : second.size(1)], second[0], atol=1e-5, rtol=0)
    assert not torch.allclose(second, plain, atol=1e-3)


@pytest.mark.parametrize("family", ["data2vec", "data2vec1"])
def test_hiding_nothing_leaves_the_features_as_they_are(family: str) -> None:
    model = MODELS[family].eval()
    batch = Batch(Modality.AUDIO, torch.randn(2, SHORT), torch.tensor([0, 1]))
    config = FeatureMaskConfig(probability=0.0, channel_probability=0.0)
    with torch.no_grad():
        assert torch.equal(extract_masked(model, batch, STEP, config).x, model.extract_features(batch.inputs).x)
