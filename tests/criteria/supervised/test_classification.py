"""Classification: losses, predictions and scores, whatever stands beside a sample in its batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import StepInfo
from d2v_plugin.criteria.supervised.classification import ClassificationConfig, ClassificationCriterion
from d2v_plugin.criteria.supervised.ctc import CtcConfig, CtcCriterion
from d2v_plugin.criteria.supervised.feature_masks import FeatureMaskConfig
from d2v_plugin.criteria.supervised.tagging import AudioTaggingConfig, AudioTaggingCriterion
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.models.data2vec1.archs import ARCHS as DATA2VEC1_ARCHS
from d2v_plugin.models.data2vec1.factory import create_model as create_data2vec1
from d2v_plugin.models.data2vec2.archs import ARCHS
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.models.data2vec2.factory import create_model
from d2v_plugin.models.data2vec2.frontend_config import TextFrontendConfig
from d2v_plugin.models.data2vec2.model import Data2VecModel
from d2v_plugin.scoring.ctc_decoding import BeamSearchConfig

STEP = StepInfo(number=1, seed=1)


def make_model() -> Data2VecModel:
    torch.manual_seed(0)

    return create_model(Data2VecConfig(text=TextFrontendConfig(vocab_size=20, num_extra_tokens=1), dim=16, depth=2, num_heads=2))


def attach(model: Any, labels: list[str] | None = None, **settings: Any) -> ClassificationCriterion:
    criterion = ClassificationCriterion(ClassificationConfig(**settings))
    criterion.set_labels(None if labels is None else LabelSet(labels))
    criterion.build(model)
    model.criterion = criterion
    model.requires_grad_(True)

    return criterion


def make_batch(labels: Tensor, lengths: list[int]) -> Batch:
    tokens = torch.randint(4, 20, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(1))
    padding_mask = torch.arange(max(lengths)) >= torch.tensor(lengths).unsqueeze(1)
    tokens = tokens.masked_fill(padding_mask, 1)

    return Batch(Modality.TEXT, tokens, torch.arange(len(lengths)), padding_mask if padding_mask.any() else None, labels=labels)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_padding_does_not_change_what_is_predicted(pooling: str) -> None:
    model = make_model()
    criterion = attach(model, ["a", "b", "c"], pooling=pooling)
    model.eval()
    together = criterion.compute_logits(model, make_batch(torch.tensor([0, 1]), [9, 4]))
    tokens = make_batch(torch.tensor([0, 1]), [9, 4]).inputs[1:, :4]

    alone = criterion.compute_logits(model, Batch(Modality.TEXT, tokens, torch.tensor([1]), labels=torch.tensor([1])))

    torch.testing.assert_close(together[1:], alone, rtol=0, atol=1e-5)


def test_shares_of_one_class_are_that_class() -> None:
    model = make_model()
    criterion = attach(model, ["a", "b", "c"], label_smoothing=0.1)
    model.eval()
    logits = criterion.compute_logits(model, make_batch(torch.tensor([2, 0]), [5, 5]))
    criterion.train()

    as_index = criterion.compute_losses(logits, torch.tensor([2, 0]))
    as_share = criterion.compute_losses(logits, torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]))

    torch.testing.assert_close(as_index, as_share)
    smooth = 0.9 * torch.eye(3)[[2, 0]] + 0.1 / 3
    torch.testing.assert_close(as_index, -(smooth * logits.log_softmax(1)).sum(1))


def test_the_loss_is_a_sum_and_evaluation_does_not_smooth() -> None:
    model = make_model()
    criterion = attach(model, ["a", "b"], label_smoothing=0.5)
    batch = make_batch(torch.tensor([0, 1, 1]), [5, 5, 5])
    model.eval()

    output = model(batch, STEP)
    predictions = criterion.predict(model, batch)

    assert output.num_targets == 3
    assert sum(prediction.loss for prediction in predictions) == pytest.approx(float(output.loss.detach()), rel=1e-6)
    logits = criterion.compute_logits(model, batch)
    assert predictions[0].loss == pytest.approx(float(-logits.log_softmax(1)[0, 0]), rel=1e-6)
    assert [prediction.reference for prediction in predictions] == [0, 1, 1]


def test_fewer_than_five_classes_are_all_among_the_best_five() -> None:
    model = make_model()
    criterion = attach(model, ["no", "yes"], scores=["accuracy", "top5_accuracy"])
    batch = make_batch(torch.tensor([0, 1, 1]), [5, 5, 5])
    model.eval()

    predictions = criterion.predict(model, batch)

    best = criterion.compute_logits(model, batch).argmax(1)
    scores = criterion.score(predictions)
    assert scores == {"accuracy": pytest.approx(float((best == batch.labels).float().mean())), "top5_accuracy": 1.0}
    assert [criterion.format(prediction.hypothesis) for prediction in predictions] == [["no", "yes"][i] for i in best]


def test_without_classes_a_number_is_predicted() -> None:
    model = make_model()
    criterion = attach(model, None, scores=["pearson", "spearman"])
    batch = make_batch(torch.tensor([0.5, 2.0, 5.0]), [5, 5, 5])
    model.eval()

    (output, predictions) = model(batch, STEP), criterion.predict(model, batch)

    numbers = torch.tensor([float(prediction.hypothesis) for prediction in predictions])  # type: ignore[arg-type]
    torch.testing.assert_close(output.loss, (numbers - batch.labels).square().sum())
    assert set(criterion.score(predictions)) == {"pearson", "spearman"}


@pytest.mark.parametrize(
    ("labels", "settings", "word"),
    [
        (None, {"scores": ["accuracy"]}, "accuracy"),
        (["a", "b"], {"scores": ["pearson"]}, "pearson"),
        (["a"], {}, "two at least"),
        (["a", "b", "c"], {"scores": ["f1"]}, "f1"),
    ],
)
def test_impossible_scores_are_named(labels: list[str] | None, settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        attach(make_model(), labels, **settings)


def test_while_the_encoder_is_frozen_only_the_head_gets_gradients() -> None:
    model = make_model()
    attach(model, ["a", "b"], freeze_updates=2, freeze_frontend=True)
    batch = make_batch(torch.tensor([0, 1]), [5, 5])

    for number, thawed in ((2, False), (3, True)):
        model.zero_grad(set_to_none=True)
        model(batch, StepInfo(number=number, seed=1)).loss.backward()
        moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert all(name.startswith("criterion.head") for name in moved) != thawed
        assert any(name.startswith("criterion.head") for name in moved)
        assert not any("local_encoder" in name or "decoder" in name for name in moved)


@pytest.mark.parametrize(
    "name", ["audio_tiny", "image_tiny", "text_tiny", *(f"data2vec1 {name}_tiny" for name in ("audio", "text", "vision"))]
)
def test_what_is_left_trainable_is_what_gets_gradients(name: str) -> None:
    model: Any
    is_data2vec1 = name.startswith("data2vec1 ")
    model = create_data2vec1(DATA2VEC1_ARCHS[name.removeprefix("data2vec1 ")]()) if is_data2vec1 else create_model(ARCHS[name]())
    attach(model, ["a", "b"])
    modality = next(iter(model.config.frontends))
    inputs = {
        Modality.AUDIO: torch.randn(2, 4000),
        Modality.IMAGE: torch.randn(2, 3, 32, 32),
        Modality.TEXT: torch.randint(4, 20, (2, 8)),
    }[modality]
    if modality is Modality.IMAGE:
        side = model.config.image.image_size
        inputs = torch.randn(2, 3, side, side)
    model.eval()

    model(Batch(modality, inputs, torch.arange(2), labels=torch.tensor([0, 1])), STEP).loss.backward()

    # In parallel training a trainable parameter without a gradient would be an unused one.
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize(
    ("kls", "config", "message"),
    [
        (ClassificationCriterion, ClassificationConfig(dropout=1.0), "`dropout` must be at least 0 and less than 1, but is 1.0"),
        (ClassificationCriterion, ClassificationConfig(scores=[]), "`scores` must name at least one score"),
        (AudioTaggingCriterion, AudioTaggingConfig(mixup=1.5), "`mixup` must be at least 0 and less than 1, but is 1.5"),
        (CtcCriterion, CtcConfig(masking=FeatureMaskConfig(length=0)), "`masking` is not valid: `length` must be at least 1"),
        (CtcCriterion, CtcConfig(beam_search=BeamSearchConfig(beam_size=0)), "`beam_size` must be at least 1, but is 0"),
    ],
)
def test_settings_of_python_callers_are_checked(kls: Any, config: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kls(config)


def test_the_norm_has_its_own_epsilon() -> None:
    criterion = attach(make_model(), ["a", "b"], norm_eps=0.5)

    assert criterion.head.norm is not None and criterion.head.norm.eps == 0.5
    with pytest.raises(ValueError, match="`norm_eps` must be greater than 0, but is 0"):
        ClassificationCriterion(ClassificationConfig(norm_eps=0.0))
