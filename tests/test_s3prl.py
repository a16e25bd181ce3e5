"""The upstream gives s3prl what it asks for; s3prl itself is not needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import d2v_plugin
from d2v_plugin.core.batch import Modality
from d2v_plugin.models.data2vec1.archs import ARCHS
from d2v_plugin.models.data2vec1.factory import create_model as create_data2vec1
from d2v_plugin.models.data2vec2.archs import audio_tiny, text_tiny
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.models.data2vec2.factory import create_model
from d2v_plugin.s3prl import UpstreamExpert
from d2v_plugin.weights.directory import ModelDirectory, write_directory


def make_wavs(*lengths: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)

    return [3 + 2 * torch.randn(length, generator=generator) for length in lengths]


def with_prenet() -> Data2VecConfig:
    config = audio_tiny()
    assert config.audio is not None
    config.audio.prenet_depth, config.audio.num_extra_tokens = 2, 1

    return config


@pytest.fixture(params=["run", "2.0", "1.0"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path, short_run: Any) -> tuple[Path, int]:
    """Where a checkpoint is, and how many blocks its model has."""
    if request.param == "run":
        return short_run("words"), 4
    torch.manual_seed(0)
    model: Any = create_model(with_prenet()) if request.param == "2.0" else create_data2vec1(ARCHS["audio_tiny"]())
    write_directory(tmp_path / "model", ModelDirectory(config=model.config, student=model.state_dict()))

    return tmp_path / "model", model.config.depth + (2 if request.param == "2.0" else 0)


@torch.no_grad()
def test_hidden_states_are_the_input_and_every_block_whatever_is_padded(checkpoint: tuple[Path, int]) -> None:
    path, num_blocks = checkpoint
    upstream = UpstreamExpert(str(path), model_config=None, refresh=False).eval()
    wavs = make_wavs(8000, 5000, 300)

    found = upstream(wavs)["hidden_states"]

    assert len(found) == num_blocks + 1 and {state.shape for state in found} == {(3, 24, found[0].size(2))}
    assert upstream.get_downsample_rates("hidden_states") == 320
    for row, num_frames in enumerate((24, 15, 1)):
        alone = upstream([wavs[row]])["hidden_states"]
        for state, expected in zip(found, alone, strict=True):
            torch.testing.assert_close(state[row, :num_frames], expected[0], atol=1e-5, rtol=1e-5)
            assert not state[row, num_frames:].any()

    # The last ones are those of the model, of a normalised waveform.
    wav = wavs[0]
    inputs = ((wav - wav.mean()) / (wav.var(correction=0) + 1e-5).sqrt())[None]
    layers = d2v_plugin.load(path).extract_features(inputs, modality=Modality.AUDIO).layers
    for state, expected in zip(upstream([wav])["hidden_states"][-len(layers) :], layers, strict=True):
        torch.testing.assert_close(state, expected, atol=1e-5, rtol=1e-5)


def test_an_upstream_can_be_fine_tuned(checkpoint: tuple[Path, int]) -> None:
    upstream = UpstreamExpert(str(checkpoint[0])).train()

    upstream(make_wavs(4000))["last_hidden_state"].square().sum().backward()

    assert any(parameter.grad is not None and parameter.grad.any() for parameter in upstream.parameters())


def test_other_modalities_are_refused(tmp_path: Path) -> None:
    model = create_model(text_tiny())
    write_directory(tmp_path / "text", ModelDirectory(config=model.config, student=model.state_dict()))

    with pytest.raises(ValueError, match="no frontend for `audio`"):
        UpstreamExpert(str(tmp_path / "text"))
