"""SpecAugment on spectrograms: spans, padding, and what it needs; tagging by the class token."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import StepInfo
from d2v_plugin.core.random import Stream, uniform
from d2v_plugin.criteria.supervised.ctc import CtcConfig, CtcCriterion
from d2v_plugin.criteria.supervised.spec_augment import SpecAugmentConfig, augment_spectrograms, draw_span, find_spectrograms
from d2v_plugin.criteria.supervised.tagging import AudioTaggingConfig, AudioTaggingCriterion
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.models.data2vec2.archs import audio_tiny, spectrogram_tiny
from d2v_plugin.models.data2vec2.factory import create_model
from d2v_plugin.models.data2vec2.model import Data2VecModel

STEP = StepInfo(1, 1)


@pytest.fixture(scope="module")
def model() -> Data2VecModel:
    torch.manual_seed(1)
    return create_model(replace(spectrogram_tiny(), dim=32, depth=2, num_heads=2))


def make_batch() -> Batch:
    padding_mask = torch.zeros(3, 16_000, dtype=torch.bool)
    padding_mask[1, 9_000:] = True
    waveforms = 0.1 * torch.randn(3, 16_000, generator=torch.Generator().manual_seed(2))
    return Batch(Modality.AUDIO, waveforms, torch.arange(3), padding_mask, 9_000, torch.eye(3, 4))


def test_spans_are_as_long_as_torchaudios_and_lie_inside() -> None:
    keys = STEP.keys(torch.arange(4000))
    lengths = torch.tensor([[40], [100]]).repeat(2000, 1)

    spans = draw_span(uniform(keys, 2, stream=Stream.HIDDEN_FRAMES), 100, lengths, 0.2)

    counts = spans.sum(dim=1)
    assert not spans[::2, 40:].any()
    # Uniform up to a fifth, rounded down: of 20 frames 0 to 19, each one time in twenty.
    assert counts[1::2].max() == 19 and counts[1::2].float().mean() == pytest.approx(9.5, abs=0.5) and counts[::2].max() == 7
    starts = spans[1::2].float().argmax(dim=1)
    assert starts[counts[1::2] > 0].float().mean() == pytest.approx(45, abs=2)


def test_hidden_bands_and_frames_are_the_mean(model: Data2VecModel) -> None:
    batch, config = make_batch(), SpecAugmentConfig(bands=0.5, frames=0.5)
    plain = find_spectrograms(model).compute_spectrogram(batch.inputs, batch.padding_mask)

    augmented = augment_spectrograms(model, batch, STEP, config).inputs

    hidden = augmented != plain
    assert hidden.any() and (augmented[hidden] == 0.0).all()
    alone = replace(batch, inputs=batch.inputs[1:2, :9_000], ids=batch.ids[1:2], padding_mask=None, min_length=None)
    by_itself = augment_spectrograms(model, alone, STEP, config).inputs[0]
    assert torch.allclose(by_itself, augmented[1, :48], atol=1e-5) and torch.equal(by_itself == 0.0, augmented[1, :48] == 0.0)
    local, masked = (model.extract_local(x, batch.padding_mask) for x in (batch.inputs, augmented))
    assert local.grid == masked.grid and not torch.equal(local.x, masked.x)


def test_tags_from_the_class_token(model: Data2VecModel) -> None:
    config = AudioTaggingConfig(pooling="cls", masking=None, mixup=None, spec_augment=SpecAugmentConfig())
    criterion = AudioTaggingCriterion(config)
    criterion.set_labels(LabelSet(["a", "b", "c", "d"]))
    criterion.build(model)
    batch = make_batch()

    loss = criterion(model, batch, STEP).loss
    logits, padding_mask = criterion.compute_logits(model, batch, None)

    assert loss.isfinite() and logits.shape == (3, 1, 4)
    extra = model.extract_features(batch.inputs, batch.padding_mask).extra_tokens
    assert extra is not None
    expected = criterion.head(criterion.norm(extra[:, -1])).sigmoid()
    assert torch.allclose(criterion.pool(logits, padding_mask).exp(), expected, atol=1e-5)


def test_models_without_spectrograms_are_refused(model: Data2VecModel) -> None:
    with pytest.raises(ValueError, match="which the model does not see"):
        find_spectrograms(create_model(replace(audio_tiny(), dim=32, depth=1, num_heads=2)))
    with pytest.raises(ValueError, match="has patches of spectrograms"):
        CtcCriterion(CtcConfig()).build(model)
