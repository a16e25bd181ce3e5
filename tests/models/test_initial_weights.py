"""Weights start as in the originals: every parameter of every published arch, and what the criteria own."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from d2v_plugin.criteria.baselines.mae import MaeConfig, MaeCriterion
from d2v_plugin.criteria.baselines.masked_lm import MaskedLMConfig, MaskedLMCriterion
from d2v_plugin.criteria.baselines.wav2vec2 import Wav2Vec2Config, Wav2Vec2Criterion
from d2v_plugin.criteria.supervised.classification import ClassificationConfig, Head
from d2v_plugin.criteria.supervised.tagging import AudioTaggingConfig, AudioTaggingCriterion
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.masking.random_blocks import RandomMaskConfig, RandomMaskSampler
from d2v_plugin.models.data2vec1.archs import ARCHS as ARCHS_OF_1
from d2v_plugin.models.data2vec1.factory import create_model as create_model_of_1
from d2v_plugin.models.data2vec2.archs import ARCHS
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.models.data2vec2.factory import create_model

GOLDEN = Path(__file__).parents[1] / "golden"
FULL_MODELS = json.loads((GOLDEN / "full_models.json").read_text())
INITIAL_WEIGHTS = json.loads((GOLDEN / "initial_weights.json").read_text())

# Blocks are alike but for BEiT's, and two of them are enough.
DEPTH = 2
BLOCK = re.compile(r"(?<=blocks\.)\d+(?=\.)|(?<=layers\.)\d+(?=\.)")
BUFFERS = ("version", "relative_position_index")


class Statistics(NamedTuple):
    """How a parameter of the original starts."""

    shape: tuple[int, ...]
    num_samples: int
    mean: float
    std: float
    low: float | None
    """The least; None = what is ``high`` is the largest absolute value."""
    high: float

    def check(self, name: str, weight: Tensor) -> None:
        """Compare a tensor: five standard errors of both sides, and how far values reach."""
        assert tuple(weight.shape) == self.shape, name
        values, size = weight.detach().double(), weight.numel()
        error = 5 * (self.std + 1e-7) * math.sqrt(1 / size + 1 / self.num_samples) + 1e-6
        assert float(values.mean()) == pytest.approx(self.mean, abs=error), name
        assert float(values.std() if size > 1 else 0.0) == pytest.approx(self.std, abs=error), name
        if self.std == 0.0 or size < 100:
            return
        if self.low is None:
            ratios = [float(values.abs().max()) / self.high]
        else:
            low, high = (float(value) - self.mean for value in values.aminmax())
            ratios = [low / (self.low - self.mean), high / (self.high - self.mean)]
        # Normal ones vary with the number of samples; one that is cut at its deviation reaches a third as far.
        assert all(1 / 1.6 < ratio < 1.6 for ratio in ratios), (name, ratios)


def recorded(name: str) -> dict[str, Statistics]:
    """Those of ``initial_weights.json``, equal blocks under one name."""
    return {
        key: Statistics(tuple(shape), count * math.prod(shape), mean, std, low, high)
        for key, (shape, count, mean, std, low, high) in INITIAL_WEIGHTS[name].items()
    }


def recorded_in_full(name: str) -> dict[str, Statistics]:
    """Those of ``full_models.json``."""
    return {
        key: Statistics(tuple(shape), math.prod(shape), mean, std, None, absmax)
        for key, (shape, _, mean, std, absmax) in FULL_MODELS[name]["state"].items()
    }


def check_all(found: Mapping[str, Tensor], expected: Mapping[str, Statistics], ours_alone: str = "$^") -> None:
    """Compare all parameters.

    :param ours_alone: a pattern of names that the original does not have.
    """
    met = set()
    for name, weight in found.items():
        key = name if name in expected else BLOCK.sub("#", name)
        if key not in expected:
            assert re.search(ours_alone, name), f"{name} is none of the original's"
            continue
        expected[key].check(name, weight)
        met.add(key)
    left = {key for key in set(expected) - met if not key.endswith(BUFFERS)}
    assert {key for key in left if not (block := BLOCK.search(key)) or int(block[0]) < DEPTH} == set()


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def shallow(config: Data2VecConfig) -> Data2VecConfig:
    for frontend in config.frontends.values():
        frontend.prenet_depth = min(DEPTH, frontend.prenet_depth)

    return replace(config, depth=DEPTH)


@pytest.mark.parametrize("arch", [f"{modality}_{size}" for modality in ("audio", "image", "text") for size in ("base", "large")])
def test_data2vec2(arch: str) -> None:
    model = create_model(shallow(ARCHS[arch]()))

    check_all(dict(model.named_parameters()), recorded_in_full(f"d2v2_{arch}"))


@pytest.mark.parametrize("arch", ["image_huge16", "image_huge14"])
def test_data2vec2_huge(arch: str) -> None:
    check_all(dict(create_model(shallow(ARCHS[arch]())).named_parameters()), recorded(f"data2vec2/{arch}"))


@pytest.mark.parametrize("arch", ["audio_base", "text_base"])
def test_data2vec1(arch: str) -> None:
    model = create_model_of_1(replace(ARCHS_OF_1[arch](), depth=DEPTH))

    check_all(dict(model.named_parameters()), recorded_in_full(f"d2v1_{arch}"))


@pytest.mark.parametrize("size", ["base", "large"])
def test_data2vec1_for_images_starts_as_in_the_authors_beit_code(size: str) -> None:
    config = ARCHS_OF_1[f"vision_{size}"]()
    if size == "large":
        config = replace(config, depth=DEPTH)

    check_all(dict(create_model_of_1(config).named_parameters()), recorded(f"data2vec1/vision_{size}"))


def test_a_deviation_of_a_half_is_noticed() -> None:
    """0.02 against 0.0108, in the smallest of the parameters that are drawn."""
    model = create_model_of_1(replace(ARCHS_OF_1["vision_base"](), depth=DEPTH))
    nn.init.normal_(model.cls_emb, std=0.02)  # type: ignore[arg-type]

    with pytest.raises(AssertionError, match="cls_emb"):
        check_all(dict(model.named_parameters()), recorded("data2vec1/vision_base"))


def build(criterion: Any, config: Data2VecConfig) -> dict[str, Tensor]:
    """Parameters of a model with a criterion."""
    model = create_model(shallow(config))
    criterion.build(model)
    model.criterion = criterion

    return dict(model.named_parameters())


SAMPLER = RandomMaskSampler(RandomMaskConfig())


def test_mae() -> None:
    config = replace(ARCHS["image_base"](), norm_first=True, mae_init=True)
    assert config.image is not None
    config.image = replace(config.image, prenet_depth=0, extra_tokens_std=0.02)

    found = build(MaeCriterion(MaeConfig(decoder_depth=DEPTH), SAMPLER), config)

    check_all(found, recorded("mae/image_base"), ours_alone=r"IMAGE\.decoder\.|IMAGE\.context_encoder\.norm\.")


def test_wav2vec2() -> None:
    config = ARCHS["audio_base"]()
    assert config.audio is not None
    config.audio = replace(config.audio, conv_norm="group_norm", alibi=None)

    found = build(Wav2Vec2Criterion(Wav2Vec2Config(), SAMPLER), config)

    # Positions are data2vec's.
    check_all(found, recorded("wav2vec2/audio_base"), ours_alone=r"AUDIO\.decoder\.|relative_positional_encoder\.")


def test_masked_lm() -> None:
    config = ARCHS["text_base"]()
    assert config.text is not None
    config.text = replace(config.text, vocab_size=1001)

    found = build(MaskedLMCriterion(MaskedLMConfig(), SAMPLER), config)

    check_all(found, recorded("masked_lm/text_base"), ours_alone=r"TEXT\.decoder\.")


def make_tagging_head() -> nn.Module:
    criterion = AudioTaggingCriterion(AudioTaggingConfig())
    criterion.set_labels(LabelSet([str(i) for i in range(527)]))
    criterion.build(create_model_of_1(replace(ARCHS_OF_1["audio_tiny"](), depth=1, dim=768, num_heads=12)))

    return nn.ModuleDict({"proj": criterion.head})


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("run_class_finetuning", lambda: Head(ClassificationConfig(init_scale=0.001), 768, 1000)),
        ("roberta", lambda: Head(ClassificationConfig(norm=False, hidden=True), 768, 3)),
        ("audioset", make_tagging_head),
    ],
)
def test_heads_of_fine_tuning(name: str, make: Callable[[], nn.Module]) -> None:
    check_all(dict(make().named_parameters()), recorded(f"heads/{name}"))
