"""The model: padding, views, modalities, modes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from d2v_plugin.core.batch import Modality
from d2v_plugin.core.contracts import Views
from d2v_plugin.models.data2vec2.archs import ARCHS
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.models.data2vec2.factory import create_model
from d2v_plugin.models.data2vec2.frontends.base import select_tokens
from d2v_plugin.models.data2vec2.model import Data2VecModel


def randomise(model: Data2VecModel) -> Data2VecModel:
    """Biases and norms away from 0 and 1, where mistakes would not show."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)

    return model


@pytest.fixture(scope="module")
def audio_model() -> Data2VecModel:
    torch.manual_seed(0)
    return randomise(create_model(ARCHS["audio_tiny"]())).eval()


@pytest.fixture(scope="module")
def text_model() -> Data2VecModel:
    torch.manual_seed(0)
    return randomise(create_model(ARCHS["text_tiny"]())).eval()


def pad(x: Tensor, length: int, value: float) -> tuple[Tensor, Tensor]:
    padded = torch.full((1, length), value, dtype=x.dtype)
    padded[:, : x.size(1)] = x

    return padded, torch.arange(length).unsqueeze(0) >= x.size(1)


@torch.no_grad()
def test_padding_does_not_change_features_of_speech(audio_model: Data2VecModel) -> None:
    torch.manual_seed(2)
    lengths = [8000, 6100, 4321]
    waveforms = [torch.randn(1, n) for n in lengths]
    alone = [audio_model.extract_features(w).x[0] for w in waveforms]

    # Garbage as padding: zeros would hide a leak.
    padded = [pad(w, 9000, 3.0) for w in waveforms]
    together = audio_model.extract_features(torch.cat([p for p, _ in padded]), torch.cat([m for _, m in padded]))

    assert together.padding_mask is not None
    for i, features in enumerate(alone):
        valid = ~together.padding_mask[i]
        assert valid.sum() == len(features)
        assert torch.allclose(together.x[i][valid], features, atol=1e-5)


@torch.no_grad()
def test_the_original_lets_padding_leak_into_speech(audio_model: Data2VecModel) -> None:
    leaky = copy.deepcopy(audio_model)
    leaky.frontend().original_padding = True
    waveform = torch.randn(1, 6000)
    alone = leaky.extract_features(waveform).x[0]
    features = leaky.extract_features(*pad(waveform, 9000, 3.0))

    assert features.padding_mask is not None
    assert not torch.allclose(features.x[0][~features.padding_mask[0]], alone, atol=1e-3)


@torch.no_grad()
def test_padding_does_not_change_features_of_text(text_model: Data2VecModel) -> None:
    tokens = torch.randint(4, 900, (1, 20))
    alone = text_model.extract_features(tokens).x
    features = text_model.extract_features(*pad(tokens, 50, 1))

    assert torch.allclose(features.x[:, :20], alone, atol=1e-5)


def test_padding_does_not_change_predictions(audio_model: Data2VecModel) -> None:
    """Student, decoder included: the same masks and noise, with and without 10 frames of padding."""
    torch.manual_seed(3)
    frontend = audio_model.frontend()
    waveform = torch.randn(1, 6000)
    padded, padding_mask = pad(waveform, 9200, 3.0)
    num_frames, num_padded = frontend.output_length(6000), frontend.output_length(9200)
    masked = torch.tensor([[1, 2, 3, 9, 10, 16], [0, 5, 6, 7, 8, 17]])
    noise = torch.randn(2, 6, 96)

    def predict(x: Tensor, mask: Tensor | None, length: int) -> Tensor:
        keep = torch.ones(2, length, dtype=torch.bool).scatter(1, masked, False)
        kept = keep.nonzero()[:, 1].view(2, -1)
        local = frontend.extract_local(x, mask)
        padding_mask = None if local.padding_mask is None else local.padding_mask.repeat_interleave(2, dim=0)
        views = Views(kept, masked, padding_mask, torch.arange(2), num_views=2)
        assert frontend.decoder is not None
        return audio_model.decode(frontend.decoder, audio_model.encode_views(local, views), views, noise)

    with torch.no_grad():
        assert torch.allclose(predict(waveform, None, num_frames), predict(padded, padding_mask, num_padded), atol=1e-5)


@torch.no_grad()
def test_masked_tokens_do_not_reach_the_encoder() -> None:
    """Whatever a masked patch holds, the student's output is the same."""
    torch.manual_seed(0)
    model = create_model(ARCHS["image_tiny"]()).eval()
    frontend = model.frontend()
    masked = torch.tensor([[i for i in range(64) if i % 4]])
    views = Views(torch.arange(0, 64, 4).unsqueeze(0), masked, None, torch.arange(1))
    images = torch.randn(1, 3, 32, 32)
    changed = images.clone().unflatten(3, (8, 4)).unflatten(2, (8, 4))
    rows, columns = masked[0] // 8, masked[0] % 8
    changed[:, :, rows, :, columns] += 10.0
    changed = changed.flatten(4, 5).flatten(2, 3)

    outputs = [model.encode_views(frontend.extract_local(x), views) for x in (images, changed)]

    assert not torch.equal(images, changed)
    assert torch.equal(*outputs)


@pytest.mark.parametrize(("enabled", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_decoder_works_in_the_compute_dtype(enabled: bool, dtype: torch.dtype) -> None:
    model = create_model(ARCHS["image_tiny"]()).train()
    decoder = model.frontend().decoder
    assert decoder is not None
    seen: list[torch.dtype] = []
    for block in decoder.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.extend((inputs[0].dtype, output.dtype)))
    order = torch.arange(64).unsqueeze(0)
    views = Views(order[:, :20], order[:, 20:], None, torch.zeros(1, dtype=torch.long))

    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        model.decode(decoder, torch.randn(1, 20, 96), views, torch.randn(1, 44, 96)).sum().backward()

    assert seen == [dtype] * 6


def test_views_share_one_pass_of_the_local_encoder() -> None:
    model = create_model(ARCHS["image_tiny"]())
    calls = []
    frontend = model.frontend()
    assert frontend.local_encoder is not None
    frontend.local_encoder.register_forward_hook(lambda module, args, output: calls.append(output.size(0)))
    views = Views(torch.arange(16).expand(6, -1), torch.arange(16, 64).expand(6, -1), None, torch.arange(6), num_views=3)

    model.encode_views(frontend.extract_local(torch.randn(2, 3, 32, 32)), views)

    assert calls == [2]


def test_selected_tokens_come_from_the_view_of_their_sample() -> None:
    x = torch.arange(2 * 5, dtype=torch.float32).view(2, 5, 1)
    positions = torch.tensor([[0, 4], [1, 2], [3, 3], [4, 0]])

    assert select_tokens(x, positions).squeeze(-1).tolist() == [[0, 4], [1, 2], [8, 8], [9, 5]]


def test_several_modalities_share_one_transformer() -> None:
    torch.manual_seed(0)
    audio, image, text = (ARCHS[f"{name}_tiny"]() for name in ("audio", "image", "text"))
    config = Data2VecConfig(audio=audio.audio, image=image.image, text=text.text, dim=96, depth=2, num_heads=4)
    model = create_model(config).eval()
    inputs = {
        Modality.AUDIO: torch.randn(2, 4000),
        Modality.IMAGE: torch.randn(2, 3, 32, 32),
        Modality.TEXT: torch.randint(4, 900, (2, 10)),
    }

    for modality, x in inputs.items():
        assert model.extract_features(x, modality=modality).x.shape[::2] == (2, 96)
    assert list(model.modality_encoders) == ["TEXT", "AUDIO", "IMAGE"]
    with pytest.raises(ValueError, match="`modality` must be one of text, audio, image"):
        model.extract_features(inputs[Modality.AUDIO])
    with pytest.raises(ValueError, match="no frontend for `text`; it has: image"):
        create_model(ARCHS["image_tiny"]()).extract_features(inputs[Modality.TEXT], modality=Modality.TEXT)


def test_layer_drop_keeps_the_graph_static() -> None:
    torch.manual_seed(0)
    config = ARCHS["text_tiny"]()
    config.layer_drop = 1.0
    model = create_model(config).train()
    tokens = torch.randint(4, 900, (2, 10))

    model.extract_features(tokens).x.sum().backward()

    gradients = [p.grad for p in model.blocks.parameters()]
    assert all(g is not None and not g.any() for g in gradients)
    local = model.frontend().extract_local(tokens)
    assert torch.equal(model.extract_features(tokens).x, local.x)


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_gradient_of_the_local_encoder_is_scaled(scale: float) -> None:
    def gradient(factor: float) -> Tensor | None:
        torch.manual_seed(0)
        config = ARCHS["image_tiny"]()
        assert config.image is not None
        config.image.local_grad_scale = factor
        model = create_model(config)
        model.extract_features(torch.ones(1, 3, 32, 32)).x.square().sum().backward()
        return model.get_parameter("modality_encoders.IMAGE.local_encoder.proj.weight").grad

    full, scaled = gradient(1.0), gradient(scale)
    assert full is not None
    if scale == 0.0:
        assert scaled is None
    else:
        assert scaled is not None and torch.allclose(scaled, scale * full)


def test_pre_norm_keeps_the_residual() -> None:
    """The original's pre-norm block returns twice its feed-forward output; ours adds it to its input."""
    config = ARCHS["image_tiny"]()
    config.norm_first = True
    block = create_model(config).blocks[0]
    x = torch.randn(1, 4, 96)

    y, tap = block(x)

    assert torch.allclose(y, x + block.attn(block.norm1(x)) + tap, atol=1e-6)


def test_wrong_input_is_refused_with_its_shape() -> None:
    with pytest.raises(ValueError, match=r"8 x 8 patches.*\(1, 3, 30, 32\)"):
        create_model(ARCHS["image_tiny"]()).extract_features(torch.zeros(1, 3, 30, 32))
    with pytest.raises(ValueError, match="at most 128 tokens"):
        create_model(ARCHS["text_tiny"]()).extract_features(torch.zeros(1, 200, dtype=torch.int64))
    with pytest.raises(ValueError, match="one frame, but has 100 samples"):
        create_model(ARCHS["audio_tiny"]()).extract_features(torch.zeros(1, 100))
