"""The base and large models have the original's parameters, under its names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from d2v_plugin.criteria.data2vec2.teacher import Data2Vec2Teacher
from d2v_plugin.models.data2vec2.archs import ARCHS
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.models.data2vec2.factory import create_model
from d2v_plugin.models.data2vec2.frontend_config import AlibiConfig, AudioFrontendConfig, ImageFrontendConfig

ORIGINALS = json.loads((Path(__file__).parents[2] / "golden" / "full_models.json").read_text())
SCOPES = {"audio": "context", "image": "all", "text": "blocks"}
FULL_SIZE = [f"{modality}_{size}" for modality in SCOPES for size in ("base", "large")]


def original(arch: str) -> dict[str, Any]:
    return ORIGINALS[f"d2v2_{arch}"]


@pytest.mark.parametrize("arch", FULL_SIZE)
def test_parameters_have_the_names_and_shapes_of_the_original(arch: str) -> None:
    with torch.device("meta"):
        model = create_model(ARCHS[arch]())

    expected = {name: tuple(shape) for name, (shape, *_) in original(arch)["state"].items()}
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == expected
    assert {name: tuple(t.shape) for name, t in model.state_dict().items()} == expected
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, (_, trainable, *_) in original(arch)["state"].items() if trainable
    }
    assert sum(p.numel() for p in model.parameters()) == original(arch)["n_params"]


@pytest.mark.parametrize("arch", FULL_SIZE)
def test_teacher_has_what_the_original_averages(arch: str) -> None:
    modality = arch.split("_")[0]
    with torch.device("meta"):
        model = create_model(ARCHS[arch]())
        teacher = Data2Vec2Teacher(model, {modality.upper(): SCOPES[modality]})

    prefix = "blocks." if modality == "text" else ""
    expected = {prefix + name: tuple(shape) for name, shape in original(arch)["ema"].items()}
    assert {name: tuple(p.shape) for name, p in teacher.named_parameters()} == expected


@pytest.mark.parametrize("arch", ARCHS)
def test_every_arch_can_be_built(arch: str) -> None:
    with torch.device("meta"):
        model = create_model(ARCHS[arch]())

    assert model.config == ARCHS[arch]()


def test_huge_models_have_the_published_size() -> None:
    with torch.device("meta"):
        model = create_model(ARCHS["image_huge14"]())

    encoder = [p.numel() for name, p in model.named_parameters() if ".decoder." not in name and "positions" not in name]
    assert sum(encoder) / 1e6 == pytest.approx(630.4, abs=0.5)


def test_per_layer_scales_and_extra_tokens() -> None:
    alibi = AlibiConfig(per_layer=True, per_head=False, learned_scale=False)
    audio = AudioFrontendConfig(num_extra_tokens=2, prenet_depth=1, alibi=alibi)
    model = create_model(Data2VecConfig(audio=audio, dim=48, depth=2, num_heads=4))
    frontend = model.frontend()

    assert frontend.alibi_scale.shape == (3, 1, 1, 1, 1)
    assert not model.requires_grad_(True).frontend().alibi_scale.requires_grad
    assert not frontend.extra_tokens[:, 0].any() and frontend.extra_tokens[:, 1].std() > 0.5


def test_wrong_sizes_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="`num_heads` must divide `dim`"):
        create_model(Data2VecConfig(image=ImageFrontendConfig(), dim=100, num_heads=3))
    with pytest.raises(ValueError, match="`patch_size` must divide `image_size`"):
        create_model(Data2VecConfig(image=ImageFrontendConfig(image_size=30, patch_size=16)))
    with pytest.raises(ValueError, match="One of `audio`, `spectrogram`, `image` and `text`"):
        create_model(Data2VecConfig())
