"""The code that leaves with models says what is wrong with inputs and settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from d2v_plugin.exporting.hugging_face.settings import describe_model
from d2v_plugin.exporting.hugging_face.shipped.configuration_data2vec2 import Data2Vec2Config
from d2v_plugin.exporting.hugging_face.shipped.modeling_data2vec2 import Data2Vec2ForCTC, Data2Vec2Model
from d2v_plugin.models.data2vec2.archs import multimodal_tiny
from d2v_plugin.models.data2vec2.factory import create_model


@pytest.fixture(scope="module")
def model() -> Any:
    return Data2Vec2Model(Data2Vec2Config(**describe_model(multimodal_tiny()))).eval()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "Exactly one must be given of: input_values, pixel_values, input_ids"),
        ({"input_ids": torch.ones(1, 3).long(), "input_values": torch.ones(1, 999)}, "Exactly one must be given"),
        ({"pixel_values": torch.ones(1, 3, 32, 16)}, r"with \(3, 32, 32\), but has \(1, 3, 32, 16\)"),
        ({"input_values": torch.ones(1, 100)}, "long enough for one frame, but has 100 samples"),
        ({"input_ids": torch.ones(1, 129).long()}, "at most 128 tokens, but has 129"),
    ],
)
def test_wrong_inputs_are_named(model: Any, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**inputs)


def test_unknown_settings_of_frontends_are_named() -> None:
    with pytest.raises(ValueError, match=r"Unknown settings of a frontend: convolutions\."):
        Data2Vec2Config(audio={"convolutions": 3})


def test_a_new_model_starts_with_our_positions() -> None:
    config = multimodal_tiny()
    theirs = Data2Vec2Model(Data2Vec2Config(**describe_model(config))).state_dict()

    name = "modality_encoders.IMAGE.fixed_positional_encoder.positions"
    torch.testing.assert_close(theirs[name], create_model(config).state_dict()[name], rtol=0.0, atol=1e-6)


def test_a_sample_of_padding_alone_spoils_nothing(model: Any) -> None:
    waveforms, mask = torch.randn(2, 4000), torch.ones(2, 4000, dtype=torch.long)
    mask[1] = 0
    with torch.no_grad():
        found = model(input_values=waveforms, attention_mask=mask).last_hidden_state

    assert found.isfinite().all()


def test_the_loss_of_ctc_is_that_of_training() -> None:
    config = Data2Vec2Config(**describe_model(multimodal_tiny()), vocab_size=5, pad_token_id=0)
    model = Data2Vec2ForCTC(config).eval()
    labels = torch.tensor([[1, 2, 2], [3, -100, -100]])
    mask = torch.ones(2, 4000, dtype=torch.long)
    mask[1, 2500:] = 0
    output = model(torch.randn(2, 4000), mask, labels)

    frames = (mask.sum(1) - 400) // 320 + 1
    log_probs = output.logits.log_softmax(-1).transpose(0, 1)
    expected = torch.nn.functional.ctc_loss(log_probs, labels.clamp_min(0), frames, torch.tensor([3, 1]), reduction="sum") / 2
    torch.testing.assert_close(output.loss, expected)
