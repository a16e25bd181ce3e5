from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score
from torch import Tensor

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import StepInfo
from d2v_plugin.criteria.supervised.tagging import (
    AudioTaggingConfig,
    AudioTaggingCriterion,
    mix_recordings,
    pool_linear_softmax,
    pool_mean,
)
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.models.data2vec2.archs import ARCHS
from d2v_plugin.models.data2vec2.model import Data2VecModel
from d2v_plugin.scoring.predictions import Prediction

STEP = StepInfo(number=1, seed=1)

Pool = Callable[[Tensor, Tensor | None], Tensor]


def make_batch(lengths: list[int], num_tags: int = 3) -> Batch:
    torch.manual_seed(1)
    padding_mask = torch.arange(max(lengths)) >= torch.tensor(lengths).unsqueeze(1)
    inputs = torch.randn(len(lengths), max(lengths)).masked_fill(padding_mask, 0.0)
    tags = (torch.rand(len(lengths), num_tags) < 0.5).float()

    return Batch(Modality.AUDIO, inputs, torch.arange(len(lengths)), padding_mask, min(lengths), tags)


def make_criterion(model: Data2VecModel, **settings: object) -> AudioTaggingCriterion:
    torch.manual_seed(0)
    criterion = AudioTaggingCriterion(AudioTaggingConfig(**settings))  # type: ignore[arg-type]
    criterion.set_labels(LabelSet(["music", "rain", "speech"]))
    criterion.build(model)

    return criterion


def test_linear_softmax_weights_probabilities_by_themselves() -> None:
    logits = torch.randn(2, 7, 3, dtype=torch.float64)
    probs = logits.sigmoid()

    torch.testing.assert_close(pool_linear_softmax(logits, None).exp(), (probs**2).sum(1) / probs.sum(1))
    torch.testing.assert_close(pool_mean(logits, None).exp(), probs.mean(1))


@pytest.mark.parametrize("pool", [pool_linear_softmax, pool_mean])
def test_pooling_ignores_padding_and_stays_finite(pool: Pool) -> None:
    logits = torch.randn(1, 7, 3)
    padded = F.pad(logits, (0, 0, 0, 4), value=50.0)
    torch.testing.assert_close(pool(padded, torch.arange(11).unsqueeze(0) >= 7), pool(logits, None))

    for extreme in (-200.0, 200.0):
        logits = torch.full((1, 4, 1), extreme, requires_grad=True)
        pooled = pool(logits, None)
        (pooled + (-pooled.expm1()).log()).sum().backward()
        assert pooled.isfinite().all() and logits.grad is not None and logits.grad.isfinite().all()


def test_the_loss_is_binary_cross_entropy_of_the_pooled_probabilities() -> None:
    model = Data2VecModel(ARCHS["audio_tiny"]()).eval()
    criterion = make_criterion(model, masking=None, mixup=None).eval()
    batch = make_batch([9000, 16_000])
    with torch.no_grad():
        output = criterion(model, batch, STEP)
        probs = criterion.compute_log_probs(model, batch).exp()

    assert batch.labels is not None and output.num_targets == 2
    torch.testing.assert_close(output.loss, F.binary_cross_entropy(probs, batch.labels, reduction="sum"))


def test_padding_does_not_change_what_is_predicted() -> None:
    model = Data2VecModel(ARCHS["audio_tiny"]()).eval()
    criterion = make_criterion(model).eval()
    batch = make_batch([9000, 16_000])
    assert batch.labels is not None
    alone = Batch(Modality.AUDIO, batch.inputs[:1, :9000], batch.ids[:1], labels=batch.labels[:1])
    with torch.no_grad():
        first, second = criterion.predict(model, batch)[0], criterion.predict(model, alone)[0]

    assert first.hypothesis == pytest.approx(second.hypothesis, abs=1e-5)
    assert first.loss == pytest.approx(second.loss, abs=1e-4)


def test_mixing_keeps_the_loudness_and_mixes_tags_by_the_same_shares() -> None:
    batch = replace(make_batch([16_000] * 8), labels=torch.eye(8), padding_mask=None)
    mixed = mix_recordings(batch, STEP, 0.5)

    assert mixed.labels is not None
    torch.testing.assert_close(mixed.labels.sum(1), torch.ones(8))
    own = mixed.labels.diagonal()
    assert (own >= 0.5).all() and (own < 1.0).all() and own.unique().numel() == 8
    # Each is the partner of one other, none of itself.
    assert ((mixed.labels - torch.diag(own)) > 0).sum(0).tolist() == [1] * 8
    torch.testing.assert_close(mixed.inputs.std(dim=1), torch.ones(8), atol=0.03, rtol=0)
    torch.testing.assert_close(mixed.inputs, mixed.labels @ batch.inputs / mixed.labels.square().sum(1, keepdim=True).sqrt())
    assert torch.equal(mix_recordings(batch, STEP, 0.5).inputs, mixed.inputs)
    assert not torch.equal(mix_recordings(batch, replace(STEP, number=2), 0.5).inputs, mixed.inputs)


def test_what_is_padding_in_both_recordings_stays_padding() -> None:
    mixed = mix_recordings(make_batch([6000, 16_000, 9000]), STEP, 0.5)

    assert mixed.padding_mask is not None and not mixed.inputs[mixed.padding_mask].any()
    assert (~mixed.padding_mask).sum(1).sort().values.tolist() == [9000, 16_000, 16_000]


def test_scores_are_those_of_scikit_learn_and_reports_name_the_tags() -> None:
    criterion = make_criterion(Data2VecModel(ARCHS["audio_tiny"]()))
    torch.manual_seed(0)
    probs, tags = torch.rand(20, 3), (torch.rand(20, 3) < 0.4).float()
    rows = [Prediction(row, 0.0, 1, probs[row].tolist(), tags[row].tolist()) for row in range(20)]

    expected = average_precision_score(tags.numpy(), probs.numpy(), average="macro")
    assert criterion.score(rows) == {"mean_average_precision": pytest.approx(expected)}
    assert criterion.format([0.9, 0.1, 0.5]) == "music;speech"
