"""Models move between Hugging Face and this package, in both directions, with equal features."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModel,
    Data2VecAudioConfig,
    Data2VecAudioForCTC,
    Data2VecAudioModel,
    Data2VecTextConfig,
    Data2VecTextModel,
    Data2VecVisionConfig,
    Data2VecVisionModel,
    RobertaConfig,
    RobertaModel,
)

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.models.data2vec1.archs import ARCHS
from d2v_plugin.models.data2vec1.base import Data2Vec1Model
from d2v_plugin.models.data2vec1.factory import create_model as create_data2vec1
from d2v_plugin.weights.convert.hugging_face import convert_hugging_face
from d2v_plugin.weights.convert.hugging_face_export import build_hugging_face

SIZE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
PAD = 1


def audio(**changes: Any) -> Data2VecAudioConfig:
    return Data2VecAudioConfig(**SIZE, conv_dim=[16] * 7, num_conv_pos_embedding_groups=4, **changes)


def text(**changes: Any) -> Data2VecTextConfig:
    return Data2VecTextConfig(**SIZE, vocab_size=50, max_position_embeddings=40, **changes)


def vision(**changes: Any) -> Data2VecVisionConfig:
    return Data2VecVisionConfig(**SIZE, image_size=32, patch_size=8, **changes)


def randomise(model: nn.Module) -> Any:
    """Every parameter differs from zero and one, so that none can be mixed up unnoticed."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)

    return model.eval()


def load_here(folder: Path) -> Data2Vec1Model:
    content = convert_hugging_face(folder, head=False)
    model = create_data2vec1(content.config)
    model.load_state_dict(content.student)

    return model.eval()


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert float((actual - expected).abs().max()) <= 1e-5 * max(1.0, float(expected.abs().max()))


VISION_VARIANTS = [
    {"use_shared_relative_position_bias": True, "use_mean_pooling": False, "use_mask_token": True},
    {"use_relative_position_bias": True, "layer_scale_init_value": 0.0},
    {},
]


@pytest.mark.parametrize(
    "source",
    [
        Data2VecAudioModel(audio()),
        Data2VecAudioModel(audio(conv_pos_kernel_size=4, num_conv_pos_embeddings=2, mask_time_prob=0.0, layer_norm_eps=1e-3)),
        Data2VecTextModel(text()),
        Data2VecTextModel(text(layer_norm_eps=1e-3, pad_token_id=0)),
        *(Data2VecVisionModel(vision(**variant)) for variant in VISION_VARIANTS),
    ],
    ids=["audio", "audio-2", "text", "text-2", "vision-shared", "vision-per-layer", "vision-none"],
)
@torch.no_grad()
def test_features_are_equal_after_import_and_after_export(source: Any, tmp_path: Path) -> None:
    randomise(source).save_pretrained(tmp_path / "in")
    kind = source.config.model_type
    inputs = {
        "data2vec-audio": torch.randn(2, 3000),
        "data2vec-text": torch.randint(4, 49, (2, 11)),
        "data2vec-vision": torch.randn(2, 3, 32, 32),
    }[kind]

    model = load_here(tmp_path / "in")
    build_hugging_face(model).save_pretrained(tmp_path / "out")
    exported = type(source).from_pretrained(tmp_path / "out").eval()

    features = model.extract_features(inputs)
    expected = source(inputs, output_hidden_states=True)
    again = exported(inputs, output_hidden_states=True)
    extra = model.num_extra_tokens
    assert_close(features.x, expected.last_hidden_state[:, extra:])
    assert_close(again.last_hidden_state, expected.last_hidden_state)
    assert len(features.layers) == 3
    for layer, theirs, back in zip(features.layers, expected.hidden_states[1:], again.hidden_states[1:], strict=True):
        assert_close(layer, theirs[:, extra:])
        assert_close(back, theirs)


@torch.no_grad()
def test_padded_text_has_equal_features(tmp_path: Path) -> None:
    source = randomise(Data2VecTextModel(text()))
    source.save_pretrained(tmp_path)
    tokens = torch.randint(4, 49, (2, 12))
    tokens[1, 7:] = PAD

    features = load_here(tmp_path).extract_features(tokens, tokens.eq(PAD))

    valid = tokens.ne(PAD)
    assert_close(features.x[valid], source(tokens, attention_mask=valid.long()).last_hidden_state[valid])


@torch.no_grad()
def test_padded_speech_has_equal_features_with_the_original_padding(tmp_path: Path) -> None:
    source = randomise(Data2VecAudioModel(audio()))
    source.save_pretrained(tmp_path)
    content = convert_hugging_face(tmp_path)
    content.config.original_padding = True
    model = create_data2vec1(content.config)
    model.load_state_dict(content.student)
    waveforms = torch.randn(2, 8000)
    padding_mask = torch.zeros(2, 8000, dtype=torch.bool)
    padding_mask[1, 5000:] = True

    features = model.eval().extract_features(waveforms, padding_mask)

    expected = source(waveforms, attention_mask=(~padding_mask).long()).last_hidden_state
    assert features.padding_mask is not None
    assert_close(features.x[~features.padding_mask], expected[~features.padding_mask])


@torch.no_grad()
def test_without_its_head_a_fine_tuned_model_gives_what_is_below(tmp_path: Path) -> None:
    source = randomise(Data2VecAudioForCTC(audio(vocab_size=20)))
    source.save_pretrained(tmp_path)
    waveforms = torch.randn(1, 3000)

    assert_close(load_here(tmp_path).extract_features(waveforms).x, source.data2vec_audio(waveforms).last_hidden_state)


@pytest.mark.parametrize("arch", ["audio_tiny", "text_tiny", "vision_tiny"])
@torch.no_grad()
def test_models_of_this_package_come_back_without_their_heads(arch: str, tmp_path: Path) -> None:
    model = randomise(create_data2vec1(ARCHS[arch]()))

    build_hugging_face(model).save_pretrained(tmp_path)

    content = convert_hugging_face(tmp_path)
    assert content.config.head_layers == 0
    state = content.student
    own = {name: tensor for name, tensor in model.state_dict().items() if "final_proj" not in name and "head" not in name}
    assert state.keys() == own.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in own.items())
    AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (RobertaModel(RobertaConfig(**SIZE, vocab_size=50)), "holds a model of the type `roberta`, not data2vec 1.0"),
        (Data2VecAudioModel(audio(conv_bias=True)), "`conv_bias` must be False, but is True"),
        (Data2VecTextModel(text(hidden_act="relu")), "`hidden_act` must be 'gelu', but is 'relu'"),
        (Data2VecVisionModel(vision(use_absolute_position_embeddings=True)), "`use_absolute_position_embeddings` must be False"),
    ],
    ids=["roberta", "audio", "text", "vision"],
)
def test_what_only_hugging_face_has_is_refused(source: Any, message: str, tmp_path: Path) -> None:
    source.save_pretrained(tmp_path)

    with pytest.raises(CheckpointError, match=message):
        convert_hugging_face(tmp_path)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder of Hugging Face"):
        convert_hugging_face(tmp_path)
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        convert_hugging_face(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file is no folder"):
        convert_hugging_face(tmp_path / "file")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("conv_norm", "group_norm", r"`audio\.conv_norm` must be layer_norm"), ("num_channels", 2, "2, but .* takes one channel")],
)
def test_what_hugging_face_lacks_cannot_be_exported(name: str, value: object, message: str) -> None:
    config = ARCHS["audio_tiny"]()
    assert config.audio is not None
    setattr(config.audio, name, value)

    with pytest.raises(CheckpointError, match=message):
        build_hugging_face(create_data2vec1(config))


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


NORM = "encoder.layers.2.layer_norm.weight"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda weights: weights.pop(NORM), f"missing:\n    {NORM}"),
        (
            lambda weights: weights.update({NORM.replace("2", "3"): torch.ones(32)}),
            "unexpected:\n    encoder.layers.3.layer_norm",
        ),
        (
            lambda weights: weights.update({NORM: torch.ones(31)}),
            f"wrong shape or type:\n    {NORM}: not (32,), as",
        ),
    ],
    ids=["missing", "unexpected", "reshaped"],
)
def test_weights_that_transformers_would_draw_are_an_error(change: Any, line: str, tmp_path: Path) -> None:
    Data2VecAudioModel(audio()).save_pretrained(tmp_path)
    change_weights(tmp_path, change)

    with pytest.raises(CheckpointError, match=re.escape(line)):
        convert_hugging_face(tmp_path)


def test_a_missing_embedding_of_masks_is_zero_and_not_random(tmp_path: Path) -> None:
    Data2VecAudioModel(audio()).save_pretrained(tmp_path)
    change_weights(tmp_path, lambda weights: weights.pop("masked_spec_embed"))

    assert not convert_hugging_face(tmp_path).student["mask_emb"].any()


def test_a_pointer_of_git_lfs_is_told_from_weights(tmp_path: Path) -> None:
    Data2VecTextModel(text()).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{64 * '0'}\nsize 3\n")

    with pytest.raises(CheckpointError, match=r"model.safetensors: this is only git-lfs's pointer to the file; fetch"):
        convert_hugging_face(tmp_path)


@pytest.mark.parametrize("setting", ["num_attention_heads", "patch_size"])
def test_an_impossible_configuration_is_told_in_a_line(setting: str, tmp_path: Path) -> None:
    Data2VecVisionModel(vision()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {setting: 0}))

    with pytest.raises(CheckpointError) as caught:
        convert_hugging_face(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
