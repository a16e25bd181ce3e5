"""What all objectives to compare with promise, as data2vec's own does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from fairseq2.recipe.error import RecipeError
from torch import Tensor, nn

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import StepInfo
from d2v_plugin.criteria.baselines.base import ComparisonCriterion
from d2v_plugin.criteria.baselines.last_layer import LastLayerConfig
from d2v_plugin.criteria.baselines.mae import MaeConfig, MaeCriterion
from d2v_plugin.criteria.baselines.masked_lm import MaskedLMConfig, MaskedLMCriterion
from d2v_plugin.criteria.baselines.wav2vec2 import Wav2Vec2Config, Wav2Vec2Criterion
from d2v_plugin.masking.random_blocks import RandomMaskConfig, RandomMaskSampler
from d2v_plugin.masking.spans_and_beit import SpanMaskConfig, SpanMaskSampler
from d2v_plugin.models.data2vec2.archs import ARCHS
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.models.data2vec2.factory import create_model
from d2v_plugin.models.data2vec2.model import Data2VecModel

STEP = StepInfo(number=3, seed=1)

# Diversity is a statistic of the batch; without it a batch is the sum of its samples.
CRITERIA: dict[str, Callable[[], ComparisonCriterion]] = {
    "image": lambda: MaeCriterion(
        MaeConfig(decoder_dim=32, decoder_depth=1, decoder_num_heads=2), RandomMaskSampler(RandomMaskConfig(ratio=0.75))
    ),
    "text": lambda: MaskedLMCriterion(MaskedLMConfig(), RandomMaskSampler(RandomMaskConfig(ratio=0.15))),
    "audio": lambda: Wav2Vec2Criterion(
        Wav2Vec2Config(num_entries=8, num_distractors=5, diversity_weight=0.0, feature_dropout=0.0),
        SpanMaskSampler(SpanMaskConfig(length=4)),
    ),
}


def make_model(modality: str) -> Data2VecModel:
    torch.manual_seed(0)
    model = create_model(ARCHS[f"{modality}_tiny"]())
    model.criterion = CRITERIA[modality]()
    model.criterion.build(model)

    return model.requires_grad_(True).train()


def make_batch(modality: str, *ids: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    pool = {
        "image": torch.randn(8, 3, 32, 32, generator=generator),
        "text": torch.randint(4, 999, (8, 40), generator=generator),
        "audio": torch.randn(8, 6400, generator=generator),
    }

    return Batch(Modality(modality), pool[modality][list(ids)], torch.tensor(ids))


def backward(model: Data2VecModel, batches: list[Batch]) -> dict[str, Tensor]:
    """What the trainer has after the batches of one update, on however many ranks they were."""
    model.zero_grad()
    outputs = []
    for batch in batches:
        outputs.append(model(batch, STEP))
        outputs[-1].loss.backward()
    num_targets = sum(output.num_targets for output in outputs)

    return {name: p.grad / num_targets for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("modality", CRITERIA)
def test_gradient_of_an_update_does_not_depend_on_how_it_is_split(modality: str) -> None:
    model = make_model(modality)

    whole = backward(model, [make_batch(modality, 0, 1, 2, 3)])
    split = backward(model, [make_batch(modality, 3, 0), make_batch(modality, 1), make_batch(modality, 2)])

    assert whole.keys() == split.keys()
    for name in whole:
        # The smallest of these gradients are sums that cancel, hence a bound relative to the largest.
        assert (whole[name] - split[name]).abs().max() <= 1e-5 * max(1.0, float(whole[name].abs().max())), name


@pytest.mark.parametrize("modality", CRITERIA)
def test_every_trainable_parameter_has_a_gradient(modality: str) -> None:
    """Data parallelism waits for all of them; the decoder of data2vec is none."""
    model = make_model(modality)

    gradients = backward(model, [make_batch(modality, 0, 1)])

    assert gradients.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(".decoder." in name and "criterion" not in name for name in gradients)
    assert any(name.startswith("criterion.") for name in gradients)


@pytest.mark.parametrize("modality", CRITERIA)
def test_loss_is_a_function_of_seed_step_and_ids(modality: str) -> None:
    model = make_model(modality)
    batch = make_batch(modality, 0, 1)
    loss = model(batch, STEP).loss

    torch.rand(10)
    assert torch.equal(model(batch, STEP).loss, loss)
    assert model(batch, StepInfo(number=4, seed=1)).loss != loss
    assert model(batch, StepInfo(number=3, seed=2)).loss != loss
    assert model(dataclasses.replace(batch, ids=torch.tensor([5, 6])), STEP).loss != loss


@pytest.mark.parametrize("modality", CRITERIA)
def test_metrics_are_the_announced_ones(modality: str) -> None:
    model = make_model(modality)

    output = model(make_batch(modality, 0, 1), STEP)

    assert list(output.metrics) == list(model.criterion.metric_names)
    assert output.num_targets > 0 and not any(value.requires_grad for value in output.metrics.values())


@pytest.mark.parametrize("modality", CRITERIA)
def test_half_precision_changes_little(modality: str) -> None:
    model = make_model(modality)
    batch = make_batch(modality, 0, 1)
    expected = model(batch, STEP).loss

    with torch.autocast("cpu", torch.bfloat16):
        output = model(batch, STEP)
    output.loss.backward()

    assert output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(expected.item(), rel=0.05)


@pytest.mark.parametrize("modality", CRITERIA)
def test_a_model_can_be_built_without_memory(modality: str) -> None:
    with torch.device("meta"):
        model = create_model(ARCHS[f"{modality}_tiny"]())
    model.criterion = CRITERIA[modality]()

    model.criterion.build(model)

    assert all(p.is_meta for p in model.parameters())
    assert {name: p.shape for name, p in model.named_parameters()} == {
        name: p.shape for name, p in make_model(modality).named_parameters()
    }


@pytest.mark.parametrize("modality", CRITERIA)
def test_training_lowers_the_loss(modality: str) -> None:
    model = make_model(modality)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    batch = make_batch(modality, 0, 1, 2, 3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        output = model(batch, STEP)
        (output.loss / output.num_targets).backward()
        losses.append(output.loss.item())
        optimizer.step()

    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(("modality", "other"), [("image", "audio"), ("text", "image"), ("audio", "text")])
def test_models_of_another_modality_are_refused(modality: str, other: str) -> None:
    with pytest.raises(RecipeError, match=f"whose only frontend is `{modality}`, but the model's: {other}"):
        CRITERIA[modality]().build(create_model(ARCHS[f"{other}_tiny"]()))


def test_models_of_several_modalities_are_refused() -> None:
    both = Data2VecConfig(image=ARCHS["image_tiny"]().image, text=ARCHS["text_tiny"]().text, dim=96, depth=1, num_heads=4)

    with pytest.raises(RecipeError, match="but the model's: text, image"):
        CRITERIA["image"]().build(create_model(both))


def test_models_of_another_family_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"trains models of the family `data2vec` .* it is a Identity"):
        CRITERIA["image"]().build(nn.Identity())  # type: ignore[arg-type]


def test_regression_of_the_last_layer_is_a_setting_of_data2vec2() -> None:
    targets = LastLayerConfig().targets

    assert (targets.num_layers, targets.end_of_block) == (1, True)
    assert not (targets.instance_norm_layers or targets.batch_norm_layers or targets.layer_norm_layers)
    assert not (targets.layer_norm or targets.instance_norm)
