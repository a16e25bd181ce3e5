"""MAE computes what Hugging Face's ``ViTMAEForPreTraining`` computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import StepInfo, Views
from d2v_plugin.core.validation import ensure_valid
from d2v_plugin.criteria.baselines.mae import MaeConfig, MaeCriterion
from d2v_plugin.masking.random_blocks import RandomMaskConfig, RandomMaskSampler
from d2v_plugin.models.data2vec2.archs import ARCHS
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.models.data2vec2.factory import create_model
from d2v_plugin.models.data2vec2.frontend_config import ImageFrontendConfig
from d2v_plugin.models.data2vec2.model import Data2VecModel

STEP = StepInfo(number=1, seed=1)
SAMPLER = RandomMaskSampler(RandomMaskConfig(ratio=0.75))


def make_theirs() -> ViTMAEForPreTraining:
    model = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=192,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            layer_norm_eps=1e-6,
            image_size=32,
            patch_size=4,
            decoder_hidden_size=32,
            decoder_num_hidden_layers=3,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=128,
            mask_ratio=0.75,
            norm_pix_loss=True,
        )
    )
    # Otherwise the positions of a new model's decoder, in version 5 of their library also of its encoder, are zero.
    model.vit.embeddings.patch_embeddings.projection._is_hf_initialized = False
    model.vit.embeddings.initialize_weights()
    model.decoder.initialize_weights(64)

    return model


def make_ours(state: dict[str, Tensor], hugging_face: Any) -> Data2VecModel:
    """A pre-norm model with their weights, without the norm that data2vec has between positions and blocks."""
    image = ImageFrontendConfig(image_size=32, patch_size=4, num_extra_tokens=1, decoder=None)
    model = create_model(
        Data2VecConfig(
            image=image,
            dim=48,
            depth=2,
            num_heads=4,
            norm_first=True,
            norm_eps=1e-6,
            dropout=0.0,
            attention_dropout=0.0,
            post_mlp_dropout=0.0,
        )
    )
    model.frontend().context_encoder.norm = None
    model.criterion = MaeCriterion(MaeConfig(decoder_dim=32, decoder_depth=3, decoder_num_heads=2), SAMPLER)
    model.criterion.build(model)
    weights = convert(state, hugging_face)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    # The tables of positions are computed on both sides.
    assert all(name.endswith("positions") for name in missing)

    return model.requires_grad_(True).train()


def convert(state: dict[str, Tensor], hugging_face: Any) -> dict[str, Tensor]:
    """Their weights, or gradients, under our names."""
    state = hugging_face.rename_vit(state)
    weights = hugging_face.convert_layers(state, "vit.encoder.layer", "blocks", 2, hugging_face.vit)
    weights |= hugging_face.convert_layers(state, "decoder.decoder_layers", "criterion.decoder.blocks", 3, hugging_face.vit)
    return weights | hugging_face.convert(
        state,
        {
            "modality_encoders.IMAGE.extra_tokens": "vit.embeddings.cls_token",
            "modality_encoders.IMAGE.local_encoder.proj": "vit.embeddings.patch_embeddings.projection",
            "norm": "vit.layernorm",
            "criterion.decoder.embed": "decoder.decoder_embed",
            "criterion.decoder.mask_token": "decoder.mask_token",
            "criterion.decoder.norm": "decoder.decoder_norm",
            "criterion.decoder.proj": "decoder.decoder_pred",
        },
    )


def test_loss_and_gradients_are_hugging_faces(hugging_face: Any) -> None:
    theirs = make_theirs().train()
    hugging_face.randomise(theirs)
    ours = make_ours(theirs.state_dict(), hugging_face)
    images = torch.randn(3, 3, 32, 32)

    expected = theirs(images, noise=torch.rand(3, 64))
    expected.loss.backward()
    output = ours.criterion(ours, Batch(Modality.IMAGE, images, torch.arange(3)), STEP, mask=expected.mask.bool())
    (output.loss / output.num_targets).backward()

    assert ours.criterion.decoder.positions.positions.grad is None
    assert output.loss.item() / output.num_targets == pytest.approx(expected.loss.item(), rel=1e-5)
    hugging_face.assert_gradients(ours, convert(hugging_face.gradients(theirs), hugging_face))


def test_defaults_are_the_published_ones() -> None:
    config = MaeConfig()

    assert (config.decoder_dim, config.decoder_depth, config.decoder_num_heads) == (512, 8, 16)
    assert (config.masking.name, config.masking.config) == ("random", {"ratio": 0.75})


def test_decoder_sees_positions_and_kept_patches() -> None:
    torch.manual_seed(0)
    model = create_model(ARCHS["image_tiny"]())
    criterion = MaeCriterion(MaeConfig(decoder_dim=32, decoder_depth=1, decoder_num_heads=2), SAMPLER)
    criterion.build(model)
    x = torch.randn(1, 1 + 16, 96)
    views = Views(torch.arange(16).unsqueeze(0), torch.arange(16, 64).unsqueeze(0), None, torch.arange(1), grid=(8, 8))

    predictions = criterion.decoder(x, views)

    assert predictions.shape == (1, 48, 48)
    assert not torch.allclose(predictions[0, 0], predictions[0, 1])
    assert not torch.allclose(predictions, criterion.decoder(x + (torch.arange(17) == 3).view(1, -1, 1), views))
    assert not criterion.decoder.positions.positions.requires_grad


def test_masked_patches_reach_the_loss_as_targets_only() -> None:
    """Patches that are masked change the loss, but not the predictions: no gradient flows to them."""
    torch.manual_seed(0)
    model = create_model(ARCHS["image_tiny"]())
    model.criterion = MaeCriterion(MaeConfig(decoder_dim=32, decoder_depth=1, decoder_num_heads=2), SAMPLER)
    model.criterion.build(model)
    mask = torch.zeros(1, 64, dtype=torch.bool)
    mask[:, 16:] = True
    seen: list[Tensor] = []
    model.criterion.decoder.register_forward_hook(lambda module, args, output: seen.append(output))
    images = torch.randn(1, 3, 32, 32)
    losses = []
    for change in (0.0, 1.0):
        images[:, :, 12:, 5] += change  # below the first 16 patches, which are two rows of eight
        losses.append(model.criterion(model, Batch(Modality.IMAGE, images, torch.tensor([0])), STEP, mask=mask).loss)

    assert torch.equal(seen[0], seen[1])
    assert losses[0] != losses[1]


def test_impossible_decoders_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`decoder_num_heads` must divide `decoder_dim` \(512\), but is 7"):
        ensure_valid(MaeConfig(decoder_num_heads=7))
    with pytest.raises(ValueError, match="`decoder_depth` must be at least 1"):
        ensure_valid(MaeConfig(decoder_depth=0))
    with pytest.raises(ValueError, match="`decoder_dim` must be a multiple of 4"):
        ensure_valid(MaeConfig(decoder_dim=6, decoder_num_heads=2))
