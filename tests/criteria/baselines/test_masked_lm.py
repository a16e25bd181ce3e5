"""Masked language modelling computes what Hugging Face's ``RobertaForMaskedLM`` computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import RobertaConfig, RobertaForMaskedLM

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import StepInfo
from d2v_plugin.core.validation import ensure_valid
from d2v_plugin.criteria.baselines.masked_lm import MaskedLMConfig, MaskedLMCriterion
from d2v_plugin.masking.random_blocks import RandomMaskConfig, RandomMaskSampler
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.models.data2vec2.factory import create_model
from d2v_plugin.models.data2vec2.frontend_config import TextFrontendConfig
from d2v_plugin.models.data2vec2.model import Data2VecModel

STEP = StepInfo(number=1, seed=1)
SAMPLER = RandomMaskSampler(RandomMaskConfig(ratio=0.15))
VOCAB_SIZE = 100


def make_theirs() -> RobertaForMaskedLM:
    config = RobertaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=192,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=34,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        pad_token_id=1,
    )

    return RobertaForMaskedLM(config)


def make_model(**changes: Any) -> Data2VecModel:
    torch.manual_seed(0)
    text = TextFrontendConfig(vocab_size=VOCAB_SIZE, max_positions=32, dropout=0.0, decoder=None)
    model = create_model(
        Data2VecConfig(text=text, dim=48, depth=2, num_heads=4, dropout=0.0, attention_dropout=0.0, post_mlp_dropout=0.0)
    )
    model.criterion = MaskedLMCriterion(MaskedLMConfig(**changes), SAMPLER)
    model.criterion.build(model)

    return model.requires_grad_(True).train()


def load(model: Data2VecModel, state: dict[str, Tensor], hugging_face: Any) -> None:
    embeddings = "modality_encoders.TEXT.local_encoder"
    weights = hugging_face.convert_layers(state, "roberta.encoder.layer", "blocks", 2, hugging_face.roberta)
    weights |= hugging_face.convert(
        state,
        {
            f"{embeddings}.embed_tokens": "roberta.embeddings.word_embeddings",
            f"{embeddings}.embed_positions": "roberta.embeddings.position_embeddings",
            f"{embeddings}.layernorm_embedding": "roberta.embeddings.LayerNorm",
            "criterion.head.dense": "lm_head.dense",
            "criterion.head.norm": "lm_head.layer_norm",
            "criterion.head.bias": "lm_head.bias",
        },
    )
    model.load_state_dict(weights)


def test_loss_and_gradients_are_hugging_faces(hugging_face: Any) -> None:
    theirs = make_theirs().train()
    hugging_face.randomise(theirs)
    with torch.no_grad():
        theirs.roberta.embeddings.token_type_embeddings.weight.zero_()  # ours has none
        for embedding in (theirs.roberta.embeddings.word_embeddings, theirs.roberta.embeddings.position_embeddings):
            embedding.weight[1] = 0.0
    ours = make_model()
    load(ours, theirs.state_dict(), hugging_face)
    tokens = torch.randint(4, VOCAB_SIZE, (3, 20))
    tokens[2, 12:] = 1
    padding_mask = tokens == 1
    mask = torch.zeros(3, 20, dtype=torch.bool)
    mask[:, [1, 5, 11]] = True
    corrupted = tokens.masked_fill(mask, VOCAB_SIZE - 1)
    corrupted[:, 5] = 50

    labels = tokens.masked_fill(~mask, -100)
    expected = theirs(corrupted, attention_mask=(~padding_mask).long(), labels=labels)
    expected.loss.backward()
    batch = Batch(Modality.TEXT, tokens, torch.arange(3), padding_mask, min_length=12)
    output = ours.criterion(ours, batch, STEP, mask=mask, corrupted=corrupted)
    (output.loss / output.num_targets).backward()

    assert output.loss.item() / output.num_targets == pytest.approx(expected.loss.item(), rel=1e-5)
    embedding = "roberta.embeddings.word_embeddings.weight"
    ours_gradient = ours.get_parameter("modality_encoders.TEXT.local_encoder.embed_tokens.weight").grad
    # Row 1 is padding, whose gradient as an output of the head differs by what the embeddings do with it.
    assert torch.allclose(ours_gradient[2:], theirs.get_parameter(embedding).grad[2:], atol=1e-6)
    assert torch.allclose(ours.criterion.head.bias.grad, theirs.lm_head.bias.grad, atol=1e-6)


def test_defaults_are_the_published_ones() -> None:
    config = MaskedLMConfig()

    assert (config.masking.name, config.masking.config) == ("random", {"ratio": 0.15})
    assert (config.random_tokens, config.kept_tokens) == (0.1, 0.1)


def test_tokens_are_masked_replaced_or_kept_80_10_10(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    criterion = model.criterion
    seen: list[Tensor] = []
    extract = model.extract_features
    monkeypatch.setattr(model, "extract_features", lambda x, *mask, **lengths: (seen.append(x), extract(x, *mask, **lengths))[1])
    tokens = torch.randint(4, VOCAB_SIZE - 1, (400, 32))

    output = criterion(model, Batch(Modality.TEXT, tokens, torch.arange(400)), STEP)

    mask, replaced = seen[0] == VOCAB_SIZE - 1, seen[0] != tokens
    num_masked = SAMPLER.num_masked(32)
    assert output.num_targets == 400 * num_masked
    random = replaced & ~mask
    assert float(mask.sum() / output.num_targets) == pytest.approx(0.8, abs=0.03)
    assert float(random.sum() / output.num_targets) == pytest.approx(0.1, abs=0.02)
    assert int(seen[0][random].min()) >= 4 and int(seen[0][random].max()) < VOCAB_SIZE - 1
    assert not replaced.sum(dim=1).gt(num_masked).any()


def test_output_weights_are_the_embeddings() -> None:
    model = make_model()

    assert "criterion.head.weight" not in dict(model.named_parameters())
    assert {name for name, _ in model.criterion.named_parameters()} == {
        "head.dense.weight",
        "head.dense.bias",
        "head.norm.weight",
        "head.norm.bias",
        "head.bias",
    }


def test_another_mask_token_can_be_named() -> None:
    assert make_model(mask_idx=3).criterion.mask_idx == 3
    with pytest.raises(ValueError, match=r"`mask_idx` must be a token id below `vocab_size` \(100\), but is 100"):
        make_model(mask_idx=100)
    with pytest.raises(ValueError, match="`num_special_tokens` must leave words"):
        make_model(num_special_tokens=99)
    with pytest.raises(ValueError, match="`random_tokens` and `kept_tokens`"):
        ensure_valid(MaskedLMConfig(random_tokens=0.6, kept_tokens=0.6))
