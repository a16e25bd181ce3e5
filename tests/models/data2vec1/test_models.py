"""Features of data2vec 1.0 models are those of the original, and padding does not reach them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from d2v_plugin.core.batch import Modality
from d2v_plugin.models.data2vec1.archs import ARCHS
from d2v_plugin.models.data2vec1.base import Data2Vec1Model, attention_mask
from d2v_plugin.models.data2vec1.config import TextConfig
from d2v_plugin.models.data2vec1.factory import create_model as create_data2vec1
from d2v_plugin.weights.convert.fairseq_data2vec1 import convert_config, convert_state_dict

GOLDEN = Path(__file__).parents[2] / "golden"
CASES = [("audio", "nopad"), ("audio", "pad"), ("text", "nopad"), ("text", "pad"), ("vision", "img")]
PAD = 1


def read(path: Path, prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in load_file(path).items() if key.startswith(prefix)}


def load_original(name: str, *, original_padding: bool = True) -> Data2Vec1Model:
    folder = GOLDEN / f"d2v1_{name}_tiny"
    settings = json.loads((folder / "config.json").read_text())["model"]
    weights = read(folder / "weights.safetensors", "model/")
    state = convert_state_dict(settings, weights)
    config = convert_config(settings, state)
    config.original_padding = original_padding
    model = create_data2vec1(config)
    model.load_state_dict(state)

    return model.eval()


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """max |a - b| / max(1, max |b|), the measure that golden/README.md proposes."""
    assert actual.shape == expected.shape
    assert float((actual - expected).detach().abs().max()) <= tolerance * max(1.0, float(expected.detach().abs().max()))


@pytest.mark.parametrize(("name", "case"), CASES)
@torch.no_grad()
def test_features_of_every_layer_are_those_of_the_original(name: str, case: str) -> None:
    model = load_original(name)
    io = read(GOLDEN / f"d2v1_{name}_tiny" / "io_features.safetensors", f"{case}/")
    source = io["source"]
    padding_mask = source.eq(PAD) if name == "text" else io.get("padding_mask")

    padding_mask = None if padding_mask is None else padding_mask.bool()
    features = model.extract_features(source, padding_mask)
    taps = [output.ffn for output in model.encode(model.extract_local(source, padding_mask))]

    # In text the original sets padding to zero where we do not; both are never looked at.
    valid = torch.ones(features.x.shape[:2], dtype=torch.bool) if name != "text" else ~features.padding_mask
    if "out_padding_mask" in io:
        assert torch.equal(features.padding_mask, io["out_padding_mask"].bool())
    assert_close(features.x[valid], io["x"][valid])
    assert len(features.layers) == 3
    for i, layer in enumerate(features.layers):
        expected = io[f"inner_states.{i + 1}"] if name == "text" else io[f"block_out.{i}"]
        assert_close(layer[valid], expected[valid])
        if name != "vision":
            assert_close(taps[i][valid], io[f"layer_results.{i}"][valid])


@torch.no_grad()
def test_padding_does_not_change_speech_features() -> None:
    model = load_original("audio", original_padding=False)
    waveform = torch.randn(1, 6000)
    alone = model.extract_features(waveform)
    mask = torch.zeros(1, 9000, dtype=torch.bool)
    mask[:, 6000:] = True

    padded = model.extract_features(torch.cat([waveform, torch.randn(1, 3000)], dim=1), mask)

    length = alone.x.size(1)
    assert_close(padded.x[:, :length], alone.x)
    assert padded.padding_mask is not None
    assert torch.equal(padded.padding_mask[0], torch.arange(padded.x.size(1)) >= length)


@torch.no_grad()
def test_padding_does_not_change_text_features() -> None:
    model = load_original("text", original_padding=False)
    tokens = torch.randint(4, 64, (1, 12))
    padded = torch.nn.functional.pad(tokens, (0, 7), value=PAD)

    features = model.extract_features(padded, padded.eq(PAD))

    assert_close(features.x[:, :12], model.extract_features(tokens).x)


def make_inputs(model: Data2Vec1Model) -> Tensor:
    match model.config.modality:
        case Modality.AUDIO:
            return torch.randn(2, 4000)
        case Modality.TEXT:
            return torch.randint(4, 900, (2, 20))
    return torch.randn(2, 3, 32, 32)


@pytest.mark.parametrize("arch", ["audio_tiny", "text_tiny", "vision_tiny"])
def test_every_block_gives_all_target_features(arch: str) -> None:
    model = create_data2vec1(ARCHS[arch]())

    outputs = list(model.encode(model.extract_local(make_inputs(model))))

    assert len(outputs) == 4
    for output in outputs:
        assert all(feature.shape == output.block.shape for feature in output)
        assert torch.equal(output.block, output.ffn_residual) == (arch == "vision_tiny")


@pytest.mark.parametrize("arch", ["audio_tiny", "text_tiny", "vision_tiny"])
def test_half_precision_under_autocast(arch: str) -> None:
    model = create_data2vec1(ARCHS[arch]()).eval()
    inputs = make_inputs(model)

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        x = model.extract_features(inputs).x

    assert_close(x.float(), model.extract_features(inputs).x, 0.05)


def test_layer_drop_skips_blocks_in_training_only() -> None:
    config = ARCHS["text_tiny"]()
    config.layer_drop = 1.0
    model = create_data2vec1(config)
    local = model.extract_local(make_inputs(model))

    skipped = list(model.encode(local))
    assert torch.equal(skipped[0].block, skipped[-1].block)
    model.eval()
    computed = list(model.encode(local))
    assert not torch.equal(computed[0].block, computed[-1].block)


def test_tables_of_each_layer_take_part() -> None:
    config = ARCHS["vision_tiny"]()
    assert config.image is not None
    config.image.relative_positions = "per_layer"
    model = create_data2vec1(config).eval()
    inputs = make_inputs(model)
    before = model.extract_features(inputs).x

    for block in model.blocks:
        torch.nn.init.normal_(block.attn.relative_position_bias_table)  # type: ignore[union-attr,arg-type]

    assert not torch.allclose(model.extract_features(inputs).x, before)


@pytest.mark.parametrize(
    ("arch", "inputs", "message"),
    [
        ("audio_tiny", torch.zeros(1, 100), "`inputs` must be long enough for one frame, but has 100 samples"),
        ("text_tiny", torch.full((1, 200), 5), "`inputs` must have at most 128 tokens"),
        ("vision_tiny", torch.zeros(1, 3, 64, 66), "must divide into patches of 4 x 4 pixels, but has the shape"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(arch: str, inputs: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_data2vec1(ARCHS[arch]()).extract_features(inputs)


def test_no_query_is_left_without_a_key() -> None:
    """Not even in padding far from the sample: some kernels make that NaN, which spreads."""
    padding_mask = torch.arange(8)[None] >= torch.tensor([[8], [3]])
    window = (torch.arange(8)[:, None] - torch.arange(8)).abs().le(1)[None]

    mask = attention_mask(padding_mask, window)

    assert mask is not None
    assert mask.any(dim=-1).all()
    assert torch.equal(mask[0, 0], window[0])
    assert not mask[1, 0, :3, 3:].any()


def test_another_modality_is_refused() -> None:
    with pytest.raises(ValueError, match="The model is for `audio`, but `modality` is `text`"):
        create_data2vec1(ARCHS["audio_tiny"]()).extract_features(torch.zeros(1, 4000), modality=Modality.TEXT)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "`num_heads` must divide `dim`"),
        ({"head_layers": -1}, "`head_layers` must be between 0 and 1,000"),
        ({"head_layers": 2}, "`head_layers` must be 0 or 1"),
        ({"text": TextConfig(vocab_size=100)}, "Exactly one of `audio`, `text` and `image` must be given"),
    ],
)
def test_configurations_that_make_no_model_are_refused(changes: dict[str, Any], message: str) -> None:
    config = ARCHS["audio_tiny"]()

    with pytest.raises(ValueError, match=message):
        create_data2vec1(type(config)(**(vars(config) | changes)))
