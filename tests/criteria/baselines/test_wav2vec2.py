"""wav2vec 2.0 computes what Hugging Face's ``Wav2Vec2ForPreTraining`` computes, with fairseq2's quantiser."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Data2VecAudioConfig, Wav2Vec2ForPreTraining
from transformers import Wav2Vec2Config as TheirConfig
from transformers.models.data2vec.modeling_data2vec_audio import Data2VecAudioPositionalConvEmbedding

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import StepInfo
from d2v_plugin.core.random import row_keys
from d2v_plugin.core.validation import ensure_valid
from d2v_plugin.criteria.baselines.wav2vec2 import Wav2Vec2Config, Wav2Vec2Criterion, draw_distractors, draw_gumbel
from d2v_plugin.masking.drawing import draw_views
from d2v_plugin.masking.spans_and_beit import SpanMaskConfig, SpanMaskSampler
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.models.data2vec2.factory import create_model
from d2v_plugin.models.data2vec2.frontend_config import AudioFrontendConfig
from d2v_plugin.models.data2vec2.model import Data2VecModel

STEP = StepInfo(number=1, seed=1)
SAMPLER = SpanMaskSampler(SpanMaskConfig(probability=0.65, length=4))
SMALL: dict[str, Any] = {"num_entries": 8, "quantized_dim": 16, "final_dim": 24, "num_distractors": 10, "feature_dropout": 0.0}


def make_theirs() -> Wav2Vec2ForPreTraining:
    """Their model with the positions of data2vec: five layers of convolution, norm and GELU."""
    config = TheirConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=192,
        conv_dim=(32, 32, 32),
        conv_kernel=(10, 3, 2),
        conv_stride=(5, 2, 2),
        conv_bias=False,
        feat_extract_norm="layer",
        hidden_dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.0,
        feat_quantizer_dropout=0.0,
        layerdrop=0.0,
        num_codevector_groups=2,
        num_codevectors_per_group=8,
        codevector_dim=16,
        proj_codevector_dim=24,
        num_negatives=10,
        diversity_loss_weight=0.1,
    )
    model = Wav2Vec2ForPreTraining(config)
    model.wav2vec2.encoder.pos_conv_embed = Data2VecAudioPositionalConvEmbedding(
        Data2VecAudioConfig(hidden_size=48, num_conv_pos_embeddings=5, conv_pos_kernel_size=19, num_conv_pos_embedding_groups=4)
    )

    return model


def make_model(**changes: Any) -> Data2VecModel:
    torch.manual_seed(0)
    audio = AudioFrontendConfig(conv_layers=[(32, 10, 5), (32, 3, 2), (32, 2, 2)], position_groups=4, decoder=None)
    model = create_model(
        Data2VecConfig(audio=audio, dim=48, depth=2, num_heads=4, dropout=0.0, attention_dropout=0.0, post_mlp_dropout=0.0)
    )
    model.criterion = Wav2Vec2Criterion(Wav2Vec2Config(**(SMALL | changes)), SAMPLER)
    model.criterion.build(model)

    return model.requires_grad_(True).train()


def convert(state: dict[str, Tensor], hugging_face: Any) -> dict[str, Tensor]:
    """Their weights, or gradients, under our names."""
    theirs, ours = "wav2vec2", "modality_encoders.AUDIO"
    weights = hugging_face.convert_layers(state, f"{theirs}.encoder.layers", "blocks", 2, hugging_face.wav2vec2)
    names = {
        f"{ours}.project_features.1": f"{theirs}.feature_projection.layer_norm",
        f"{ours}.project_features.2": f"{theirs}.feature_projection.projection",
        f"{ours}.context_encoder.norm": f"{theirs}.encoder.layer_norm",
        "criterion.mask_embedding": f"{theirs}.masked_spec_embed",
        "criterion.quantizer.entries": "quantizer.codevectors",
        "criterion.quantizer.entry_proj": "quantizer.weight_proj",
        "criterion.prediction_proj": "project_hid",
        "criterion.target_proj": "project_q",
    }
    for i in range(3):
        names[f"{ours}.local_encoder.conv_layers.{i}.0"] = f"{theirs}.feature_extractor.conv_layers.{i}.conv"
        names[f"{ours}.local_encoder.conv_layers.{i}.2.1"] = f"{theirs}.feature_extractor.conv_layers.{i}.layer_norm"
    for i in range(5):
        names[f"{ours}.relative_positional_encoder.{i + 1}.0"] = f"{theirs}.encoder.pos_conv_embed.layers.{i}.conv"
    return weights | hugging_face.convert(state, names)


def load(model: Data2VecModel, state: dict[str, Tensor], hugging_face: Any) -> None:
    weights = convert(state, hugging_face)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and missing == ["criterion.quantizer.num_updates"]


def waves(*ids: int, length: int = 800) -> Batch:
    generator = torch.Generator().manual_seed(1)
    pool = torch.randn(8, length, generator=generator)

    return Batch(Modality.AUDIO, pool[list(ids)], torch.tensor(ids))


def test_loss_and_gradients_are_hugging_faces(hugging_face: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = make_theirs().train()
    hugging_face.randomise(theirs)
    ours = make_model(feature_penalty=0.0)
    load(ours, theirs.state_dict(), hugging_face)
    batch = waves(0, 1, 2)
    length = ours.frontend().output_length(800)
    views = draw_views(ours.criterion.sampler, STEP, batch, length)
    mask, masked = views.mask, views.masked
    distractors = draw_distractors(views.keys, masked.size(1), 10)
    # Theirs index all frames of the batch, for all frames.
    negatives = torch.zeros(3, length, 10, dtype=torch.int64)
    for i in range(3):
        negatives[i, masked[i]] = i * length + masked[i][distractors[i]]
    # Theirs draw noise for all frames from the global generator.
    torch.manual_seed(7)
    noise = -torch.empty(3 * length * 2, 8).exponential_().log()
    noise = noise.view(3, length, 2, 8)[torch.arange(3).unsqueeze(1), masked]
    original = F.gumbel_softmax
    monkeypatch.setattr(F, "gumbel_softmax", lambda *args, **kwargs: (torch.manual_seed(7), original(*args, **kwargs))[1])

    expected = theirs(batch.inputs, mask_time_indices=mask, sampled_negative_indices=negatives)
    expected.loss.backward()
    output = ours.criterion(ours, batch, STEP, mask=mask, distractors=distractors, gumbel_noise=noise)
    output.loss.backward()

    num_targets = output.num_targets
    assert num_targets == masked.numel()
    assert output.loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    contrastive, diversity = output.metrics["contrastive_loss"].item(), output.metrics["diversity_loss"].item()
    assert contrastive * num_targets == pytest.approx(expected.contrastive_loss.item(), rel=1e-5)
    assert diversity * num_targets == pytest.approx(0.1 * expected.diversity_loss.item(), rel=1e-5)
    assert output.metrics["prob_perplexity"].item() == pytest.approx(expected.codevector_perplexity.item(), rel=1e-5)
    for name, expected_gradient in convert(hugging_face.gradients(theirs), hugging_face).items():
        error = (ours.get_parameter(name).grad - expected_gradient).abs().max() / expected_gradient.abs().max()
        assert error < 1e-5 or name.endswith("qkv.bias"), name


def test_quantiser_chooses_like_fairseq2s() -> None:
    model = make_model().eval()
    criterion = model.criterion
    x = torch.randn(3, 20, 32)

    quantized = criterion.quantize(x, row_keys(1, 1, torch.arange(3), 1), step_nr=1)
    with torch.compiler.set_stance("force_eager"):  # theirs compiles a function in every call
        expected = criterion.quantizer(x)

    assert torch.allclose(quantized.x, expected.quantized_vectors, atol=1e-6)
    assert quantized.prob_perplexity.item() == pytest.approx(expected.prob_perplexity.item(), rel=1e-5)
    assert quantized.code_perplexity.item() == pytest.approx(expected.code_perplexity.item(), rel=1e-5)


def test_temperature_is_a_function_of_the_step() -> None:
    criterion = Wav2Vec2Criterion(Wav2Vec2Config(), SAMPLER)

    assert criterion.temperature_at(1) == 2.0
    assert criterion.temperature_at(2) == pytest.approx(2.0 * 0.999995)
    assert criterion.temperature_at(10**6) == 0.5


def test_features_penalty_is_the_mean_square_of_the_local_encoder() -> None:
    model = make_model(feature_penalty=10.0)
    batch = waves(0, 1)

    penalty = model(batch, STEP).metrics["features_penalty"]

    expected = 10.0 * model.frontend().local_encoder(batch.inputs).square().mean()
    assert penalty.item() == pytest.approx(expected.item(), rel=1e-5)


def test_distractors_are_other_frames_evenly() -> None:
    keys = row_keys(1, 1, torch.arange(200), 1)

    distractors = draw_distractors(keys, 5, 50)

    own = torch.arange(5).view(1, 5, 1)
    assert not (distractors == own).any()
    counts = torch.stack([(distractors[:, 0] == i).float().mean() for i in range(1, 5)])
    assert torch.allclose(counts, torch.tensor(0.25), atol=0.02)
    assert torch.equal(draw_distractors(keys[3:4], 5, 50)[0], distractors[3])
    with pytest.raises(ValueError, match="At least 2 frames must be masked"):
        draw_distractors(keys, 1, 50)


def test_gumbel_noise_has_its_moments_and_no_infinities() -> None:
    noise = draw_gumbel(row_keys(1, 1, torch.arange(100), 1), 10_000)

    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(torch.pi**2 / 6, abs=0.02)


def test_a_distractor_with_the_targets_code_does_not_count() -> None:
    criterion = make_model().criterion
    predictions, targets = torch.randn(1, 3, 24), torch.randn(1, 3, 24)
    distractors = torch.tensor([[[1, 2], [0, 2], [0, 1]]])

    logits = criterion.compare(predictions, targets, torch.tensor([[[0, 1], [0, 1], [2, 3]]]), distractors)

    assert logits.shape == (3, 3)
    assert logits.isinf().tolist() == [[False, True, False], [False, True, False], [False, False, False]]
    expected = F.cosine_similarity(predictions[0, 0], targets[0, 2], dim=0) / 0.1
    assert logits[0, 2].item() == pytest.approx(expected.item(), rel=1e-5)


def test_padding_changes_neither_loss_nor_distractors() -> None:
    model = make_model(diversity_weight=0.1)
    batch = waves(0, 1)
    padded = torch.cat([batch.inputs, torch.randn(2, 400)], dim=1)
    padding_mask = torch.arange(1200).expand(2, -1) >= 800

    alone = model(batch, STEP)
    together = model(Batch(Modality.AUDIO, padded, batch.ids, padding_mask, min_length=800), STEP)

    assert alone.num_targets == together.num_targets
    assert together.loss.item() == pytest.approx(alone.loss.item(), rel=1e-5)


def test_defaults_are_the_published_ones() -> None:
    config, spans = Wav2Vec2Config(), SpanMaskConfig()

    assert (config.masking.name, spans.probability, spans.length) == ("span", 0.65, 10)
    assert (config.num_codebooks, config.num_entries, config.num_distractors) == (2, 320, 100)
    assert (config.diversity_weight, config.feature_penalty, config.logit_temperature) == (0.1, 10.0, 0.1)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`quantized_dim` must be a multiple of `num_codebooks` \(3\), but is 256"):
        ensure_valid(Wav2Vec2Config(num_codebooks=3))
    with pytest.raises(ValueError, match="`num_distractors` must be at least 1"):
        ensure_valid(Wav2Vec2Config(num_distractors=0))
    with pytest.raises(ValueError, match="`min_temperature` must be greater than 0"):
        ensure_valid(Wav2Vec2Config(min_temperature=0.0))
