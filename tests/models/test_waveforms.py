from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from d2v_plugin.models.data2vec1.archs import ARCHS as ARCHS_OF_1
from d2v_plugin.models.data2vec2.archs import ARCHS
from d2v_plugin.models.families import AnyConfig, create_model


def with_group_norm(config: AnyConfig, **changes: object) -> AnyConfig:
    assert config.audio is not None
    return replace(config, audio=replace(config.audio, conv_norm="group_norm"), **changes)


CONFIGS = {"1.0": ARCHS_OF_1["audio_tiny"](), "2.0": ARCHS["audio_tiny"]()}


@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_a_group_norm_leaves_padding_out(family: str) -> None:
    model = create_model(with_group_norm(CONFIGS[family])).eval()
    waveforms, padding_mask = torch.randn(2, 6000), torch.zeros(2, 6000, dtype=torch.bool)
    padding_mask[1, 4000:] = True
    waveforms[1, 4000:] = 0.0

    together = model.extract_features(waveforms, padding_mask).x
    alone = model.extract_features(waveforms[1:, :4000]).x

    torch.testing.assert_close(together[1, : alone.size(1)], alone[0], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_original_padding_has_everything_in_the_statistics_of_a_group_norm() -> None:
    model = create_model(with_group_norm(CONFIGS["2.0"], original_padding=True)).eval()
    waveforms, padding_mask = torch.randn(1, 6000), torch.zeros(1, 6000, dtype=torch.bool)
    padding_mask[0, 4000:] = True

    local = model.extract_local(waveforms, padding_mask).x

    assert torch.equal(local, model.extract_local(waveforms).x)


@torch.no_grad()
def test_without_padding_a_group_norm_is_that_of_pytorch() -> None:
    model = create_model(with_group_norm(CONFIGS["2.0"])).eval()
    waveforms = torch.randn(2, 6000)

    masked = model.extract_local(waveforms, torch.zeros(2, 6000, dtype=torch.bool)).x

    torch.testing.assert_close(masked, model.extract_local(waveforms).x, rtol=1e-5, atol=1e-5)
