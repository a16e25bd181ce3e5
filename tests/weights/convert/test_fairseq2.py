"""fairseq2's own wav2vec 2.0 computes the same here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq2.checkpoint import ModelMetadataDumper
from fairseq2.models.transformer import TransformerNormOrder
from fairseq2.models.wav2vec2 import Wav2Vec2Config, Wav2Vec2EncoderConfig, create_wav2vec2_model
from fairseq2.nn import BatchLayout
from torch import Tensor, nn

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.models.data2vec1.factory import create_model
from d2v_plugin.weights.convert.fairseq2 import adopt
from d2v_plugin.weights.library import library

LARGE: dict[str, Any] = {
    "layer_norm_features": False,
    "feature_extractor_bias": True,
    "feature_extractor_layer_norm_convs": True,
    "norm_order": TransformerNormOrder.PRE,
}


def configure(**changes: Any) -> Wav2Vec2Config:
    encoder = Wav2Vec2EncoderConfig(
        model_dim=32,
        feature_dim=16,
        feature_extractor_layer_descs=[(16, 10, 5), *[(16, 3, 2)] * 4, *[(16, 2, 2)] * 2],
        pos_conv_kernel_size=16,
        num_pos_conv_groups=4,
        num_encoder_layers=3,
        num_encoder_attn_heads=4,
        ffn_inner_dim=48,
    )
    for name, value in changes.items():
        setattr(encoder, name, value)
    return Wav2Vec2Config(encoder_config=encoder, final_dim=16, quantized_dim=16, num_codebook_entries=8)


def write_run(folder: Path, config: Wav2Vec2Config, state: dict[str, Tensor], family: str = "wav2vec2") -> Path:
    """As fairseq2's trainer writes it, without a record."""
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir(parents=True)
    library().resolve(ModelMetadataDumper).dump(checkpoints, family, config)
    files = checkpoints / "step_7" / "model" / "pp_00" / "tp_00"
    files.mkdir(parents=True)
    torch.save(state, files / "sdp_00.pt")

    return folder


def build_source(config: Wav2Vec2Config) -> Any:
    torch.manual_seed(0)
    source = create_wav2vec2_model(config)
    for parameter in source.parameters():
        nn.init.normal_(parameter, std=0.3)
    return source.eval()


@pytest.mark.parametrize("changes", [{}, LARGE, {"model_dim": 16}, {"pos_encoder_depth": 3}])
@torch.no_grad()
def test_features_are_equal(changes: dict[str, Any], tmp_path: Path) -> None:
    config = configure(**changes)
    source = build_source(config)
    foreign = adopt(write_run(tmp_path, config, source.state_dict()))
    model = create_model(foreign.config)  # type: ignore[arg-type]
    model.load_state_dict(foreign.state)

    waveforms = torch.randn(2, 4000)
    x, layout = source.encoder_frontend(waveforms, BatchLayout.of(waveforms))
    expected = source.encoder(x, layout)
    actual = model.eval().extract_features(waveforms).x
    assert float((actual - expected).abs().max() / expected.abs().max().clamp(min=1.0)) < 1e-5
    left_out = {row.part for row in foreign.transfer.rows if row.action == "left out"}
    assert left_out == {"quantizer.entries", "quantizer.entry_proj", "final_proj", "final_target_proj"}


@pytest.mark.parametrize("where", ["", "checkpoints", "checkpoints/step_7"])
def test_a_run_may_be_named_in_three_ways(where: str, tmp_path: Path) -> None:
    config = configure()
    write_run(tmp_path, config, build_source(config).state_dict())

    assert adopt(tmp_path / where).config.depth == 3


def test_other_names_are_refused() -> None:
    for name in ("no_such_model", "llama3_8b"):
        with pytest.raises(CheckpointError, match="neither a run of fairseq2 nor the name"):
            adopt(name)


def test_what_only_fairseq2_has_is_refused(tmp_path: Path) -> None:
    config = configure()
    state = build_source(config).state_dict()
    config.encoder_config.use_conformer = True
    with pytest.raises(CheckpointError, match="`use_conformer` must be False, but is True"):
        adopt(write_run(tmp_path, config, state))


def test_damaged_runs(tmp_path: Path) -> None:
    config = configure()
    run = write_run(tmp_path / "a", config, {})
    with pytest.raises(CheckpointError, match="there are only 0 tensors"):
        adopt(run)
    (run / "checkpoints" / "model.yaml").write_text("model_family: qwen\n")
    with pytest.raises(CheckpointError, match="the family `qwen`"):
        adopt(run)
    (tmp_path / "b" / "checkpoints").mkdir(parents=True)
    (tmp_path / "b" / "checkpoints" / "model.yaml").write_text("model_family: wav2vec2\n")
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        adopt(tmp_path / "b")
