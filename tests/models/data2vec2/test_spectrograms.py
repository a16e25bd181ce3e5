"""The frontend of spectrograms: lengths, padding, masks on its grid, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import StepInfo
from d2v_plugin.criteria.data2vec2.criterion import Data2Vec2Config, Data2Vec2Criterion
from d2v_plugin.criteria.targets import TargetConfig
from d2v_plugin.data.log_mel import log_mel
from d2v_plugin.masking.random_blocks import BlockMaskConfig, InverseBlockMaskSampler
from d2v_plugin.models.data2vec2.archs import spectrogram_tiny
from d2v_plugin.models.data2vec2.factory import create_model
from d2v_plugin.models.data2vec2.model import Data2VecModel
from d2v_plugin.weights.positions import resize_positions

LONG, SHORT = 16_000, 9_000


@pytest.fixture(scope="module")
def model() -> Data2VecModel:
    torch.manual_seed(1)
    return create_model(replace(spectrogram_tiny(), dim=32, depth=2, num_heads=2)).eval()


def make_batch(padding: float = 0.0) -> Batch:
    """A long clip, and a short one that is padded to its length."""
    waveforms = 0.1 * torch.randn(2, LONG, generator=torch.Generator().manual_seed(2))
    padding_mask = torch.zeros(2, LONG, dtype=torch.bool)
    padding_mask[1, SHORT:] = True
    waveforms[1, SHORT:] = padding

    return Batch(Modality.AUDIO, waveforms, torch.arange(2), padding_mask, SHORT)


@torch.no_grad()
def test_padding_changes_nothing(model: Data2VecModel) -> None:
    batch = make_batch(padding=1.0)
    together = model.extract_features(batch.inputs, batch.padding_mask)
    alone = model.extract_features(batch.inputs[1:, :SHORT])

    # 98 and 54 frames are 12 and 6 rows of 4 patches.
    assert together.grid == (12, 4) and alone.grid == (6, 4)
    assert model.output_length(LONG) == 48 and model.output_length(SHORT) == alone.x.size(1) == 24
    assert together.padding_mask is not None and together.padding_mask.sum(dim=1).tolist() == [0, 24]
    assert (together.x[1, :24] - alone.x[0]).abs().max() < 1e-5
    assert together.extra_tokens is not None and (together.extra_tokens[1] - alone.extra_tokens[0]).abs().max() < 1e-5  # type: ignore[index]


@torch.no_grad()
def test_padded_patches_are_neither_targets_nor_seen(model: Data2VecModel) -> None:
    sampler = InverseBlockMaskSampler(BlockMaskConfig(ratio=0.8, block_size=2))
    targets = TargetConfig(num_layers=2, layer_norm=True)
    criterion = Data2Vec2Criterion(
        Data2Vec2Config(num_views=3, cls_weight=1.0, targets=targets), dict.fromkeys(Modality, sampler)
    )
    criterion.build(model)
    losses = []
    for padding in (0.0, 1.0):
        batch = make_batch(padding)
        views = criterion.draw_views(model, batch, model.extract_local(batch.inputs, batch.padding_mask), StepInfo(1, 1))
        assert views.grid == (12, 4) and views.padding_mask is not None
        assert not (views.mask & views.padding_mask).any()
        assert views.mask.sum(dim=1).unique().tolist() == [sampler.num_masked(24)]
        losses.append(criterion(model, batch, StepInfo(1, 1)).loss)

    assert losses[0] == pytest.approx(float(losses[1]), rel=1e-5)


def test_padded_clips_are_what_eat_hears() -> None:
    config = spectrogram_tiny()
    assert config.spectrogram is not None
    config = replace(config, spectrogram=replace(config.spectrogram, pad_frames=40))
    waveforms, padding_mask = torch.randn(3, 8000), torch.arange(8000) >= torch.tensor([[8000], [5000], [300]])
    expected = torch.zeros(3, 40, 32)
    for row, length in enumerate((8000, 5000)):
        found = log_mel(waveforms[row : row + 1, :length], config.spectrogram)[0, :40]
        expected[row, : len(found)] = found

    model = create_model(config)
    found = model.modality_encoders["AUDIO"].compute_spectrogram(waveforms, padding_mask)

    torch.testing.assert_close(found, (expected + 4.268) / (2 * 4.569), atol=1e-5, rtol=1e-5)
    # What has no frame at all is no recording, though the model would hear silence.
    assert model.shortest_input() == 400 and model.output_length(8000) == model.output_length(400) == 20


def test_clips_of_impossible_length_are_refused(model: Data2VecModel) -> None:
    assert model.shortest_input() == 1520  # 8 frames of 10 ms
    for num_samples, message in (
        (1519, "one patch of 8 frames, but has 7"),
        (399, "at least 400 samples"),
        (170_000, "at most `spectrogram.max_frames` \\(1,024\\) frames, but has 1,061"),
    ):
        with pytest.raises(ValueError, match=message):
            model.extract_features(torch.zeros(1, num_samples))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_mels": 30}, "`spectrogram.patch_size` must divide `spectrogram.num_mels` \\(30\\)"),
        ({"max_frames": 1000, "patch_size": 16}, "must divide `spectrogram.max_frames` \\(1000\\)"),
        ({"log_mel_std": 0.0}, "`spectrogram` is not valid: `log_mel_std` must be greater than 0"),
        ({"pad_frames": 2048}, "must be at most `spectrogram.max_frames`"),
        ({"sample_rate": 8000, "high_freq": 8000.0}, "half of `spectrogram.sample_rate` \\(4,000 Hz\\)"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings: dict[str, Any], message: str) -> None:
    config = spectrogram_tiny()
    assert config.spectrogram is not None
    with pytest.raises(ValueError, match=message):
        create_model(replace(config, spectrogram=replace(config.spectrogram, **settings)))


def test_another_longest_recording_keeps_positions(model: Data2VecModel) -> None:
    config = model.config
    assert config.spectrogram is not None
    longer = create_model(replace(config, spectrogram=replace(config.spectrogram, max_frames=2048)))
    key = "modality_encoders.AUDIO.fixed_positional_encoder.positions"
    state = model.state_dict()

    resize_positions(state, longer.state_dict())

    assert state[key].size(1) == 1024 and torch.equal(state[key][:, :512], model.state_dict()[key])
