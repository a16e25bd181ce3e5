"""The base models have the original's parameters, under its names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq2.nn.utils.module import reset_parameters

from d2v_plugin.criteria.data2vec1.teacher import Data2Vec1Teacher
from d2v_plugin.models.base import BlockList
from d2v_plugin.models.data2vec1.archs import ARCHS
from d2v_plugin.models.data2vec1.base import Data2Vec1Model
from d2v_plugin.models.data2vec1.factory import create_model as create_data2vec1

ORIGINALS = json.loads((Path(__file__).parents[2] / "golden" / "full_models.json").read_text())
BASE = ["audio_base", "text_base", "vision_base"]
SCOPES = {"audio_base": "encoder", "text_base": "encoder", "vision_base": "encoder"}
CONSTANTS = ("version", "relative_position_index")


def original(arch: str, part: str) -> dict[str, Any]:
    return {name: value for name, value in ORIGINALS[f"d2v1_{arch}"][part].items() if not name.endswith(CONSTANTS)}


def build_on_meta(arch: str) -> Data2Vec1Model:
    with torch.device("meta"):
        return create_data2vec1(ARCHS[arch]())


@pytest.mark.parametrize("arch", BASE)
def test_parameters_have_the_names_and_shapes_of_the_original(arch: str) -> None:
    model = build_on_meta(arch)

    expected = {name: tuple(shape) for name, (shape, *_) in original(arch, "state").items()}
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == expected
    assert set(model.state_dict()) == set(expected)
    assert sum(p.numel() for p in model.parameters()) == ORIGINALS[f"d2v1_{arch}"]["n_params"]


@pytest.mark.parametrize("arch", BASE)
def test_teacher_has_what_the_original_averages(arch: str) -> None:
    teacher = Data2Vec1Teacher(build_on_meta(arch), "encoder")

    prefix = "encoder.sentence_encoder." if arch == "text_base" else "encoder."
    expected = {prefix + name: tuple(shape) for name, shape in original(arch, "ema").items()}
    # The original averages the final norm of images, and does not use it.
    expected = {name: shape for name, shape in expected.items() if not name.startswith("encoder.norm.")}
    assert {name: tuple(p.shape) for name, p in teacher.named_parameters()} == expected


@pytest.mark.parametrize("arch", ARCHS)
def test_every_arch_can_be_built_and_finds_its_blocks(arch: str) -> None:
    model = build_on_meta(arch)

    assert model.config == ARCHS[arch]()
    assert [len(m) for m in model.modules() if isinstance(m, BlockList)] == [model.config.depth]


@pytest.mark.parametrize(("arch", "millions"), [("audio_large", 314), ("text_large", 358), ("vision_large", 304)])
def test_large_models_have_the_published_size(arch: str, millions: int) -> None:
    model = build_on_meta(arch)

    assert sum(p.numel() for p in model.parameters()) == pytest.approx(millions * 1e6, rel=0.01)


@pytest.mark.parametrize("arch", ["audio_tiny", "text_tiny", "vision_tiny"])
def test_a_model_on_the_meta_device_can_be_materialised(arch: str) -> None:
    model = build_on_meta(arch).to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, torch.nan)

    reset_parameters(model)

    # Position convolutions and others reset themselves; nothing is left out.
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_model_without_modality_is_refused() -> None:
    config = ARCHS["text_tiny"]()
    config.text = None

    with pytest.raises(ValueError, match="One of `audio`, `text` and `image` must be configured"):
        create_data2vec1(config)


def test_pre_norm_sequences_are_speech() -> None:
    config = ARCHS["text_tiny"]()
    config.norm_first = True

    with pytest.raises(ValueError, match="`norm_first` must be false, because it is for audio alone"):
        create_data2vec1(config)


@pytest.mark.parametrize("name", ["audio_tiny", "vision_tiny"])
def test_settings_of_others_encoders_train(name: str) -> None:
    config = ARCHS[name]()
    if config.audio is not None:
        config.norm_first, config.audio.conv_bias, config.audio.position_norm = True, True, False
        inputs = torch.randn(2, 4000)
    else:
        assert config.image is not None
        config.image.absolute_positions = True
        inputs = torch.randn(2, 3, 32, 32)
    model = create_data2vec1(config)

    model.predict(model.extract_features(inputs).x).square().sum().backward()
    without = {key for key, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {"mask_emb"}


def test_a_teacher_that_will_stand_still_follows_the_positions() -> None:
    config = ARCHS["vision_tiny"]()
    assert config.image is not None
    config.image.absolute_positions = True
    model = create_data2vec1(config)
    teacher = Data2Vec1Teacher(model, "layers", freezes=True)
    with torch.no_grad():
        model.get_parameter("encoder.pos_embed").add_(1.0)

    teacher.follow(model, 0.5)
    assert teacher.get_parameter("encoder.pos_embed").equal(model.get_parameter("encoder.pos_embed"))
