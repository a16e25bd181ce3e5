"""New runs start from others' models: what fits comes over, the rest is named."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BeitConfig, BeitModel, RobertaConfig, RobertaModel, ViTConfig, ViTModel, Wav2Vec2Config, Wav2Vec2Model

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.models.data2vec1.archs import vision_tiny
from d2v_plugin.models.data2vec1.config import AudioConfig, Data2Vec1ModelConfig
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.models.data2vec2.frontend_config import (
    AlibiConfig,
    AudioFrontendConfig,
    DecoderConfig,
    ImageFrontendConfig,
    TextFrontendConfig,
)
from d2v_plugin.models.families import create_model
from d2v_plugin.weights.convert.fairseq import convert_fairseq
from d2v_plugin.weights.convert.transfer import Transfer
from d2v_plugin.weights.directory import ModelDirectory, write_directory
from d2v_plugin.weights.loading import load, load_weights

SIZE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
SPEECH: dict[str, Any] = {**SIZE, "conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
CONVOLUTIONS = [(16, 10, 5), *[(16, 3, 2)] * 4, *[(16, 2, 2)] * 2]
DECODER = DecoderConfig(dim=16, num_groups=4, num_layers=1)
OURS: dict[str, Any] = {"dim": 32, "depth": 3, "num_heads": 4, "mlp_ratio": 2.0}
SAME_POSITIONS: dict[str, Any] = {"position_width": 16, "position_groups": 4, "position_depth": 1, "position_norm": False}


def audio(**changes: Any) -> AudioFrontendConfig:
    settings = {"conv_layers": CONVOLUTIONS, "conv_norm": "group_norm", "decoder": DECODER, **SAME_POSITIONS, **changes}
    return AudioFrontendConfig(**settings)


def save(source: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    for parameter in source.parameters():
        nn.init.normal_(parameter, std=0.3)
    source.eval().save_pretrained(folder)
    return folder


@pytest.fixture
def wav2vec2(tmp_path: Path) -> tuple[Path, Wav2Vec2Model]:
    source = Wav2Vec2Model(Wav2Vec2Config(**SPEECH))
    return save(source, tmp_path / "wav2vec2"), source


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> list[Transfer]:
    """The tables that are logged."""
    found: list[Transfer] = []
    original = Transfer.format

    def record(self: Transfer) -> list[str]:
        found.append(self)
        return original(self)

    monkeypatch.setattr(Transfer, "format", record)
    return found


def parts(table: Transfer, action: str) -> set[str]:
    return {row.part for row in table.rows if row.action == action}


def start(config: Any, path: Path) -> Any:
    model = create_model(config)
    load_weights(model, path)
    return model.eval()


def difference(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1.0))


@pytest.mark.parametrize("prenet_depth", [0, 1])
@torch.no_grad()
def test_speech_in_data2vec_2_is_equal_where_the_settings_are(
    prenet_depth: int, wav2vec2: tuple[Path, Any], tables: list[Transfer]
) -> None:
    folder, source = wav2vec2
    config = Data2VecConfig(**OURS | {"depth": 3 - prenet_depth}, audio=audio(prenet_depth=prenet_depth))
    model = start(config, folder)

    waveforms = torch.randn(2, 4000)
    assert difference(model.extract_features(waveforms).x, source(waveforms).last_hidden_state) < 1e-5
    (table,) = tables
    assert parts(table, "new") == {"modality_encoders.AUDIO.decoder"}
    assert parts(table, "left out") == {"mask_emb"}


@torch.no_grad()
def test_pre_norm_speech_in_data2vec_2_has_one_norm_more(tmp_path: Path, tables: list[Transfer]) -> None:
    large: dict[str, Any] = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
    source = Wav2Vec2Model(Wav2Vec2Config(**SPEECH, **large))
    save(source, tmp_path)
    model = start(Data2VecConfig(**OURS, audio=audio(conv_norm="layer_norm", conv_bias=True), norm_first=True), tmp_path)

    assert parts(tables[0], "new") == {"modality_encoders.AUDIO.decoder", "modality_encoders.AUDIO.context_encoder.norm"}
    model.frontend().context_encoder.norm = None
    waveforms = torch.randn(2, 4000)
    assert difference(model.extract_features(waveforms).x, source(waveforms).last_hidden_state) < 1e-5


@torch.no_grad()
def test_published_data2vec_2_for_speech_takes_blocks_and_convolutions(
    wav2vec2: tuple[Path, Any], tables: list[Transfer]
) -> None:
    folder, source = wav2vec2
    positions = {"position_width": 15, "position_depth": 3, "position_norm": True}
    model = start(Data2VecConfig(**OURS, audio=audio(alibi=AlibiConfig(), **positions)), folder)

    attention = source.encoder.layers[1].attention
    assert model.blocks[1].attn.qkv.weight[32:64].equal(attention.k_proj.weight)
    local = model.frontend().local_encoder(torch.ones(1, 4000))
    assert difference(local, source.feature_extractor(torch.ones(1, 4000)).transpose(1, 2)) < 1e-5
    (table,) = tables
    assert parts(table, "new") == {
        "modality_encoders.AUDIO.decoder",
        "modality_encoders.AUDIO.relative_positional_encoder",
        "modality_encoders.AUDIO.alibi_scale",
    }
    assert parts(table, "left out") == {"mask_emb", "modality_encoders.AUDIO.relative_positional_encoder"}
    assert "blocks.*" in parts(table, "came over")


@torch.no_grad()
def test_data2vec_1_takes_all_but_other_positions(wav2vec2: tuple[Path, Any], tables: list[Transfer]) -> None:
    folder, source = wav2vec2
    frontend = AudioConfig(conv_layers=CONVOLUTIONS, conv_norm="group_norm", position_groups=4)
    model = start(Data2Vec1ModelConfig(audio=frontend, dim=32, ffn_dim=64, depth=3, num_heads=4), folder)

    assert model.encoder.layers[2].fc1.weight.equal(source.encoder.layers[2].feed_forward.intermediate_dense.weight)
    assert model.mask_emb.equal(source.masked_spec_embed)
    assert parts(tables[0], "new") == {"final_proj", "encoder.pos_conv"}


@torch.no_grad()
def test_text_in_data2vec_2_is_equal(tmp_path: Path, tables: list[Transfer]) -> None:
    source = RobertaModel(
        RobertaConfig(**SIZE, vocab_size=50, max_position_embeddings=42, type_vocab_size=1, layer_norm_eps=1e-5),
        add_pooling_layer=False,
    )
    save(source, tmp_path)
    text = TextFrontendConfig(vocab_size=50, max_positions=40, decoder=DECODER)
    model = start(Data2VecConfig(**OURS, text=text), tmp_path)

    tokens = torch.randint(4, 50, (2, 9))
    assert difference(model.extract_features(tokens).x, source(tokens).last_hidden_state) < 1e-5
    assert parts(tables[0], "new") == {"modality_encoders.TEXT.decoder"}


@torch.no_grad()
def test_images_in_data2vec_2_take_all_but_one_norm(tmp_path: Path, tables: list[Transfer]) -> None:
    source = ViTModel(ViTConfig(**SIZE, image_size=32, patch_size=8, layer_norm_eps=1e-6), add_pooling_layer=False)
    save(source, tmp_path)
    image = ImageFrontendConfig(image_size=32, patch_size=8, num_extra_tokens=1, decoder=DECODER)
    model = start(Data2VecConfig(**OURS, image=image, norm_first=True, norm_eps=1e-6), tmp_path)

    (table,) = tables
    assert parts(table, "new") == {"modality_encoders.IMAGE.decoder", "modality_encoders.IMAGE.context_encoder.norm"}
    model.frontend().context_encoder.norm = None
    images = torch.randn(2, 3, 32, 32)
    features = model.extract_features(images)
    assert difference(torch.cat([features.extra_tokens, features.x], dim=1), source(images).last_hidden_state) < 1e-5


@torch.no_grad()
def test_scales_of_residuals_are_folded_into_data_2vec_2s_blocks(tmp_path: Path, tables: list[Transfer]) -> None:
    source = BeitModel(
        BeitConfig(**SIZE, image_size=32, patch_size=8, vocab_size=9, layer_norm_eps=1e-6, use_mean_pooling=False),
        add_pooling_layer=False,
    )
    save(source, tmp_path)
    image = ImageFrontendConfig(image_size=32, patch_size=8, num_extra_tokens=1, fixed_positions=False, decoder=None)
    model = start(Data2VecConfig(**OURS, image=image, norm_first=True, norm_eps=1e-6), tmp_path)

    model.frontend().context_encoder.norm = None
    images = torch.randn(2, 3, 32, 32)
    assert difference(model.extract_features(images).x, source(images).last_hidden_state[:, 1:]) < 1e-5


@torch.no_grad()
def test_positions_of_others_are_resized(tmp_path: Path) -> None:
    save(ViTModel(ViTConfig(**SIZE, image_size=32, patch_size=8), add_pooling_layer=False), tmp_path)
    config = Data2Vec1ModelConfig(
        image=replace(
            vision_tiny().image, image_size=48, patch_size=8, relative_positions="none", absolute_positions=True, layer_scale=None
        ),  # type: ignore[type-var]
        dim=32,
        ffn_dim=64,
        depth=3,
        num_heads=4,
        norm_eps=1e-12,
    )
    assert start(config, tmp_path).encoder.pos_embed.shape == (1, 36, 32)


@torch.no_grad()
def test_our_own_data2vec_1_starts_data2vec_2(tmp_path: Path, tables: list[Transfer]) -> None:
    settings: dict[str, Any] = {"conv_layers": CONVOLUTIONS, "position_width": 15, "position_groups": 4}
    source = create_model(Data2Vec1ModelConfig(audio=AudioConfig(**settings), dim=32, ffn_dim=64, depth=3, num_heads=4))
    write_directory(tmp_path / "out", ModelDirectory(config=source.config, student=source.state_dict()))
    config = Data2VecConfig(**OURS, audio=AudioFrontendConfig(decoder=None, **settings))
    model = start(config, tmp_path / "out")

    waveforms = torch.randn(1, 4000)
    assert difference(model.extract_features(waveforms).x, source.eval().extract_features(waveforms).x) < 1e-5
    assert parts(tables[0], "left out") == {"mask_emb", "final_proj"}


@pytest.mark.parametrize(
    ("config", "lines"),
    [
        (
            Data2VecConfig(**OURS | {"num_heads": 8}, audio=audio(conv_norm="layer_norm")),
            [
                "`num_heads` is 4 in the checkpoint, but 8 in the model (`model.config_overrides.num_heads`)",
                "`audio.conv_norm` is group_norm in the checkpoint, but layer_norm in the model",
            ],
        ),
        (
            Data2VecConfig(**OURS | {"depth": 2}, audio=audio()),
            ["`depth` is 3 in the checkpoint, but 2 in the model", "blocks.2.*"],
        ),
        (
            Data2Vec1ModelConfig(audio=AudioConfig(conv_layers=CONVOLUTIONS), dim=32, ffn_dim=64, depth=3, num_heads=4),
            ["`audio.conv_norm` is group_norm in the checkpoint, but layer_norm in the model"],
        ),
    ],
)
def test_what_must_agree_is_refused_with_the_way_out(config: Any, lines: list[str], wav2vec2: tuple[Path, Any]) -> None:
    model = create_model(config)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}

    with pytest.raises(CheckpointError, match="does not fit this model") as info:
        load_weights(model, wav2vec2[0])
    assert all(line in str(info.value) for line in lines), str(info.value)
    assert all(tensor.equal(before[key]) for key, tensor in model.state_dict().items())


def test_a_folder_that_is_to_be_used_is_to_be_converted_first(wav2vec2: tuple[Path, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"is converted by `fairseq2 recipe convert huggingface .*wav2vec2 OUT`"):
        load(wav2vec2[0])


def test_another_modality_is_refused(wav2vec2: tuple[Path, Any]) -> None:
    model = create_model(Data2VecConfig(**OURS, text=TextFrontendConfig(vocab_size=50)))

    with pytest.raises(CheckpointError, match="is a model of audio; a model of text cannot start from it"):
        load_weights(model, wav2vec2[0])
    with pytest.raises(CheckpointError, match="has no teacher"):
        load_weights(create_model(Data2VecConfig(**OURS, audio=audio())), wav2vec2[0], weights="teacher")


def test_the_log_has_the_table(wav2vec2: tuple[Path, Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        start(Data2VecConfig(**OURS, audio=audio()), wav2vec2[0])

    text = " ".join(caplog.text.split())
    assert "Hugging Face's wav2vec2:" in text
    assert "new modality_encoders.AUDIO.decoder 4 tensors stays as initialised" in text
    assert "came over blocks.* 36 tensors" in text


def test_a_file_of_fairseq_starts_a_run_with_either_weights(fairseq_checkpoint: Any) -> None:
    path = fairseq_checkpoint("audio")
    converted = convert_fairseq(path)
    model = create_model(converted.config)
    load_weights(model, path, weights="teacher")
    assert converted.teacher is not None
    assert all(model.state_dict()[key].equal(tensor) for key, tensor in converted.teacher.items())


def test_what_a_conversion_leaves_out_is_in_the_table_of_a_run(fairseq_checkpoint: Any, tables: list[Transfer]) -> None:
    path = fairseq_checkpoint("image", lambda content: content["model"].update({"recon_proj.weight": torch.ones(2)}))
    start(convert_fairseq(path).config, path)

    assert parts(tables[0], "left out") == {"recon_proj"}
    assert tables[0].read("again", tables[0].describe()).describe() == tables[0].describe()


def test_a_step_without_a_description_is_our_own_readers_business(tmp_path: Path) -> None:
    (tmp_path / "step_3").mkdir()

    with pytest.raises(CheckpointError, match=r"model\.yaml does not exist"):
        load_weights(create_model(Data2VecConfig(**OURS, audio=audio())), tmp_path / "step_3")
