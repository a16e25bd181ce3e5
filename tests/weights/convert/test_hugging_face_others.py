"""Others' models of Hugging Face compute the same here, to 1e-5, with weights of every size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    BeitConfig,
    BeitModel,
    BertConfig,
    BertModel,
    HubertConfig,
    HubertModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaModel,
    ViTConfig,
    ViTForImageClassification,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    Wav2Vec2ForPreTraining,
    Wav2Vec2Model,
)

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.models.data2vec1.base import Data2Vec1Model
from d2v_plugin.models.data2vec1.factory import create_model
from d2v_plugin.weights.convert.hugging_face_others import adopt
from d2v_plugin.weights.convert.transfer import Foreign

SIZE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
SPEECH: dict[str, Any] = {
    **SIZE,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
LARGE: dict[str, Any] = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
IMAGE: dict[str, Any] = {**SIZE, "image_size": 32, "patch_size": 8}


def randomise(model: nn.Module) -> Any:
    """Every parameter differs from zero and one, so that none can be mixed up unnoticed."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)

    return model.eval()


def save(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def build(foreign: Foreign) -> Data2Vec1Model:
    model = create_model(foreign.config)  # type: ignore[arg-type]
    model.load_state_dict(foreign.state)

    return model.eval()


def difference(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max() / max(1.0, float(expected.abs().max())))


def parts(foreign: Foreign, action: str) -> dict[str, str]:
    return {row.part: row.remark for row in foreign.transfer.rows if row.action == action}


@pytest.mark.parametrize("changes", [{}, LARGE, LARGE | {"conv_bias": False}, {"conv_bias": True}])
@pytest.mark.parametrize("kinds", [(Wav2Vec2Config, Wav2Vec2Model), (HubertConfig, HubertModel)])
@torch.no_grad()
def test_speech(kinds: tuple[Any, Any], changes: dict[str, Any], tmp_path: Path) -> None:
    config_kls, model_kls = kinds
    source = randomise(model_kls(config_kls(**SPEECH, **changes)))
    foreign = adopt(save(source, tmp_path))
    waveforms = torch.randn(2, 4000)
    expected = source(waveforms, output_hidden_states=True)
    features = build(foreign).extract_features(waveforms)

    assert difference(features.x, expected.last_hidden_state) < 1e-5
    for ours, theirs in zip(features.layers[:-1], expected.hidden_states[1:-1], strict=True):
        assert difference(ours, theirs) < 1e-5
    assert parts(foreign, "came over")["encoder.pos_conv"] == "weight norm fused"
    assert not parts(foreign, "new") and not parts(foreign, "left out")


@torch.no_grad()
def test_padded_speech(tmp_path: Path) -> None:
    source = randomise(Wav2Vec2Model(Wav2Vec2Config(**SPEECH, **LARGE)))
    waveforms, padding = torch.randn(2, 4000), torch.zeros(2, 4000, dtype=torch.bool)
    padding[1, 2500:] = True
    expected = source(waveforms.masked_fill(padding, 0.0), attention_mask=(~padding).long()).last_hidden_state
    features = build(adopt(save(source, tmp_path))).extract_features(waveforms.masked_fill(padding, 0.0), padding)

    assert features.padding_mask is not None
    valid = ~features.padding_mask
    assert difference(features.x[valid], expected[valid]) < 1e-5


@pytest.mark.parametrize("type_vocab_size", [1, 2])
@torch.no_grad()
def test_roberta(type_vocab_size: int, tmp_path: Path) -> None:
    config = RobertaConfig(**SIZE, vocab_size=50, max_position_embeddings=40, type_vocab_size=type_vocab_size)
    source = randomise(RobertaModel(config, add_pooling_layer=False))
    foreign = adopt(save(source, tmp_path))
    tokens = torch.randint(4, 50, (2, 12))
    tokens[1, 8:] = 1
    expected = source(tokens, attention_mask=tokens.ne(1).long()).last_hidden_state
    features = build(foreign).extract_features(tokens, tokens.eq(1))

    assert difference(features.x[tokens.ne(1)], expected[tokens.ne(1)]) < 1e-5
    assert bool(parts(foreign, "left out")) == (type_vocab_size > 1)


@torch.no_grad()
def test_bert(tmp_path: Path) -> None:
    source = randomise(BertModel(BertConfig(**SIZE, vocab_size=50, max_position_embeddings=40)))
    tokens = torch.randint(4, 50, (2, 40))
    tokens[1, 8:] = 0
    expected = source(tokens, attention_mask=tokens.ne(0).long()).last_hidden_state
    save(source, tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "[MASK]", *map(str, range(44))]))
    foreign = adopt(tmp_path)
    features = build(foreign).extract_features(tokens, tokens.eq(0))

    assert difference(features.x[tokens.ne(0)], expected[tokens.ne(0)]) < 1e-5
    text = foreign.config.text
    assert text is not None and (text.mask_idx, text.num_special_tokens) == (5, 6)  # type: ignore[union-attr]
    assert parts(foreign, "left out") == {
        "pooler.dense": "a head on top of the encoder",
        "embeddings.token_type_embeddings": "segments other than the first",
    }


@torch.no_grad()
def test_vit(tmp_path: Path) -> None:
    source = randomise(ViTModel(ViTConfig(**IMAGE), add_pooling_layer=False))
    images = torch.randn(2, 3, 32, 32)
    foreign = adopt(save(source, tmp_path))
    features = build(foreign).extract_features(images)
    expected = source(images).last_hidden_state

    assert features.extra_tokens is not None
    assert difference(torch.cat([features.extra_tokens, features.x], dim=1), expected) < 1e-5
    assert parts(foreign, "new") == {"mask_emb": "zero: the checkpoint has none"}
    assert "the softmax drops them" in parts(foreign, "left out")["encoder.blocks.*"]


@torch.no_grad()
def test_mae(tmp_path: Path) -> None:
    source = randomise(ViTMAEModel(ViTMAEConfig(**IMAGE, mask_ratio=0.0)))
    images = torch.randn(2, 3, 32, 32)
    features = build(adopt(save(source, tmp_path))).extract_features(images)
    # What the patches are shuffled by.
    noise = torch.arange(16).expand(2, -1) / 16
    expected = source(images, noise=noise).last_hidden_state

    assert features.extra_tokens is not None
    assert difference(torch.cat([features.extra_tokens, features.x], dim=1), expected) < 1e-5


@pytest.mark.parametrize(
    "changes",
    [
        {"use_shared_relative_position_bias": True, "use_mean_pooling": False, "use_mask_token": True},
        {"use_relative_position_bias": True, "layer_scale_init_value": 0.0},
        {"use_absolute_position_embeddings": True},
    ],
)
@torch.no_grad()
def test_beit(changes: dict[str, Any], tmp_path: Path) -> None:
    source = randomise(BeitModel(BeitConfig(**IMAGE, vocab_size=20, **changes), add_pooling_layer=False))
    images = torch.randn(2, 3, 32, 32)
    features = build(adopt(save(source, tmp_path))).extract_features(images)
    expected = source(images).last_hidden_state

    assert features.extra_tokens is not None
    assert difference(torch.cat([features.extra_tokens, features.x], dim=1), expected) < 1e-5


@pytest.mark.parametrize(
    ("source", "left_out"),
    [
        (Wav2Vec2ForCTC(Wav2Vec2Config(**SPEECH)), {"lm_head"}),
        (
            Wav2Vec2ForPreTraining(Wav2Vec2Config(**SPEECH)),
            {"quantizer.codevectors", "quantizer.weight_proj", "project_q", "project_hid"},
        ),
        (ViTForImageClassification(ViTConfig(**IMAGE)), {"classifier", "encoder.blocks.*"}),
        (
            RobertaForMaskedLM(RobertaConfig(**SIZE, vocab_size=50, type_vocab_size=1)),
            {"lm_head", "lm_head.dense", "lm_head.layer_norm"},
        ),
    ],
)
def test_heads_are_named_as_left_out(source: PreTrainedModel, left_out: set[str], tmp_path: Path) -> None:
    foreign = adopt(save(source, tmp_path))

    build(foreign)
    assert parts(foreign, "left out").keys() == left_out


def test_the_decoder_of_mae_is_named_as_left_out(tmp_path: Path) -> None:
    sizes = {
        "decoder_hidden_size": 16,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 16,
        "decoder_num_hidden_layers": 1,
    }
    foreign = adopt(save(ViTMAEForPreTraining(ViTMAEConfig(**IMAGE, **sizes)), tmp_path))

    assert any("decoder" in part for part in parts(foreign, "left out"))
    assert all("decoder" not in part for part in parts(foreign, "came over"))


def change_weights(folder: Path, change: Any) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda weights: weights.pop("encoder.layers.1.layer_norm.weight"),
            r"missing:\n +encoder\.layers\.1\.self_attn_layer_norm",
        ),
        (lambda weights: weights.update({"encoder.layers.1.adapter.weight": torch.zeros(2)}), r"unexpected:\n.*adapter"),
        (lambda weights: weights.update({"encoder.layer_norm.weight": torch.zeros(5)}), r"\(5,\) instead of \(32,\)"),
    ],
)
def test_what_the_names_do_not_explain_is_an_error(change: Any, message: str, tmp_path: Path) -> None:
    save(Wav2Vec2Model(Wav2Vec2Config(**SPEECH)), tmp_path)
    change_weights(tmp_path, change)

    with pytest.raises(CheckpointError, match=message):
        adopt(tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (HubertModel(HubertConfig(**SPEECH, conv_pos_batch_norm=True)), "`conv_pos_batch_norm` must be False, but is True"),
        (Wav2Vec2Model(Wav2Vec2Config(**SPEECH, hidden_act="relu")), "`hidden_act` must be 'gelu', but is 'relu'"),
        (ViTModel(ViTConfig(**SIZE, image_size=(32, 16), patch_size=8)), "images here are square"),
    ],
)
def test_what_only_they_have_is_refused(source: PreTrainedModel, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        adopt(save(source, tmp_path))


def test_files_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not a folder of Hugging Face's"):
        adopt(tmp_path)
    save(Wav2Vec2Model(Wav2Vec2Config(**SPEECH)), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        adopt(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match="git-lfs"):
        adopt(tmp_path)


def test_weights_in_several_files_of_either_format(tmp_path: Path) -> None:
    source = randomise(Wav2Vec2Model(Wav2Vec2Config(**SPEECH)))
    source.save_pretrained(tmp_path / "one")
    source.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "config.json").write_text((tmp_path / "one" / "config.json").read_text())
    torch.save(source.state_dict(), tmp_path / "torch" / "pytorch_model.bin")

    expected = adopt(tmp_path / "one").state
    for folder in ("many", "torch"):
        found = adopt(tmp_path / folder).state
        assert all(tensor.equal(found[key]) for key, tensor in expected.items())


def test_the_table_is_plain_data(tmp_path: Path) -> None:
    foreign = adopt(save(Wav2Vec2ForCTC(Wav2Vec2Config(**SPEECH)), tmp_path))

    assert json.loads(json.dumps(foreign.transfer.describe())) == foreign.transfer.describe()
    lines = [" ".join(line.split()) for line in foreign.transfer.format()]
    assert lines[0] == "Hugging Face's wav2vec2:"
    assert "came over encoder.layers.* 48 tensors" in lines
    assert lines[-1] == "left out lm_head 2 tensors a head on top of the encoder"
