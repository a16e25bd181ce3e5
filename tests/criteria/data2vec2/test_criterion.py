"""The objective of data2vec 2.0 beyond parity: randomness, batches, options."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fairseq2.recipe.error import RecipeError
from torch import Tensor

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import LossOutput, StepInfo
from d2v_plugin.criteria.data2vec2.criterion import Data2Vec2Config, Data2Vec2Criterion, ModalityOverrides
from d2v_plugin.criteria.ema import EmaConfig
from d2v_plugin.criteria.targets import TargetConfig, make_targets
from d2v_plugin.masking.random_blocks import (
    BlockMaskConfig,
    BlockMaskSampler,
    InverseBlockMaskSampler,
    RandomMaskConfig,
    RandomMaskSampler,
)
from d2v_plugin.models.base import drop_criterion
from d2v_plugin.models.data2vec2.archs import ARCHS
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.models.data2vec2.factory import create_model
from d2v_plugin.models.data2vec2.frontend_config import DecoderConfig
from d2v_plugin.models.data2vec2.model import Data2VecModel

STEP = StepInfo(number=3, seed=1)
SAMPLERS = {
    Modality.AUDIO: BlockMaskSampler(BlockMaskConfig(ratio=0.5, block_size=3, adjust=0.05)),
    Modality.IMAGE: InverseBlockMaskSampler(BlockMaskConfig(ratio=0.75, block_size=3, adjust=0.1)),
    Modality.TEXT: RandomMaskSampler(RandomMaskConfig(ratio=0.5)),
}
CONFIG = Data2Vec2Config(num_views=3, targets=TargetConfig(num_layers=2), cls_weight=0.0)
MakeTrained = Callable[..., Data2VecModel]


@pytest.fixture
def make_trained() -> MakeTrained:
    def make(arch: str | Data2VecConfig, **changes: object) -> Data2VecModel:
        torch.manual_seed(0)
        model = create_model(ARCHS[arch]() if isinstance(arch, str) else arch)
        criterion = Data2Vec2Criterion(dataclasses.replace(CONFIG, **changes), SAMPLERS)  # type: ignore[arg-type]
        criterion.build(model)
        model.criterion = criterion
        with torch.no_grad():
            for average, _ in criterion.teacher.pairs(model).values():
                average.add_(0.05 * torch.randn_like(average))
        return model.requires_grad_(True).train()

    return make


def images(*ids: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(10, 3, 32, 32, generator=generator)

    return Batch(Modality.IMAGE, pool[list(ids)], torch.tensor(ids))


def gradients(model: Data2VecModel) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def backward(model: Data2VecModel, batches: list[Batch]) -> dict[str, Tensor]:
    """What the trainer has after the batches of one update, on however many ranks they were."""
    model.zero_grad()
    outputs: list[LossOutput] = []
    for batch in batches:
        outputs.append(model(batch, STEP))
        outputs[-1].loss.backward()
    num_targets = sum(output.num_targets for output in outputs)

    return {name: gradient / num_targets for name, gradient in gradients(model).items()}


def test_gradient_of_an_update_does_not_depend_on_how_it_is_split(make_trained: MakeTrained) -> None:
    model = make_trained("image_tiny", cls_weight=1.0)

    whole = backward(model, [images(0, 1, 2, 3)])
    split = backward(model, [images(3, 0), images(1), images(2)])

    assert whole.keys() == split.keys()
    for name in whole:
        assert torch.allclose(whole[name], split[name], atol=1e-6), name


def test_loss_is_a_function_of_seed_step_and_ids(make_trained: MakeTrained) -> None:
    model = make_trained("image_tiny")
    loss = model(images(0, 1), STEP).loss

    torch.rand(10)
    assert torch.equal(model(images(0, 1), STEP).loss, loss)
    assert model(images(0, 1), StepInfo(number=4, seed=1)).loss != loss
    assert model(images(0, 1), StepInfo(number=3, seed=2)).loss != loss
    other_ids = dataclasses.replace(images(0, 1), ids=torch.tensor([5, 6]))
    assert model(other_ids, STEP).loss != loss


@pytest.mark.parametrize(("arch", "length"), [("audio_tiny", 8000), ("text_tiny", 24)])
def test_padding_does_not_change_the_loss(make_trained: MakeTrained, arch: str, length: int) -> None:
    """Masks, features, targets and loss of a batch are the same however far it is padded."""
    scope = "context" if arch == "audio_tiny" else "blocks"
    model = make_trained(arch, teacher_scope=scope)
    torch.manual_seed(1)
    modality = Modality(arch.split("_")[0])
    inputs = torch.randn(2, length) if modality is Modality.AUDIO else torch.randint(4, 900, (2, length))
    padding = torch.full((2, length // 2), 1, dtype=inputs.dtype)
    padded = torch.cat([inputs, padding], dim=1)
    padding_mask = torch.arange(padded.size(1)).expand(2, -1) >= length
    ids = torch.tensor([0, 1])

    alone = model(Batch(modality, inputs, ids), STEP)
    together = model(Batch(modality, padded, ids, padding_mask, min_length=length), STEP)

    assert alone.num_targets == together.num_targets
    assert torch.allclose(alone.loss, together.loss, rtol=1e-5)


def test_options_change_what_is_predicted(make_trained: MakeTrained) -> None:
    def loss(**changes: object) -> float:
        return make_trained("image_tiny", **changes)(images(0, 1), STEP).loss.item()

    default = loss()
    assert loss(loss_beta=0.5) < default
    assert loss(loss_scale=1.0) == pytest.approx(default * 96**0.5, rel=1e-5)
    assert loss(regression_weight=0.5) == pytest.approx(default / 2, rel=1e-5)
    assert loss(targets=TargetConfig(num_layers=2, end_of_block=True)) != default
    assert loss(targets=TargetConfig(num_layers=3)) != default
    assert loss(cls_weight=1.0) > default


def test_layers_that_are_kept_apart_have_each_a_projection(make_trained: MakeTrained) -> None:
    model = make_trained("image_tiny", targets=TargetConfig(num_layers=2, separate_layers=True), cls_weight=0.01)
    criterion = model.criterion
    output = model(images(0, 1), STEP)
    output.loss.backward()

    projection = model.get_parameter("criterion.layer_proj.weight")
    assert projection.shape == (2 * 96, 96) and projection.grad is not None
    assert all(bool(rows.any()) for rows in projection.grad.view(2, 96, 96))
    # Predicting nothing costs the mean of both layers' squares, whatever their number.
    with torch.no_grad():
        for parameter in criterion.layer_proj.parameters():  # type: ignore[union-attr]
            parameter.zero_()
    metrics, targets = model(images(0, 1), STEP).metrics, output.observation.targets
    assert targets.shape[-1] == 2 * 96
    assert metrics["regression_loss"].item() == pytest.approx(float(targets.square().mean()) * 96**0.5, rel=0.1)
    assert "layer_proj" not in "".join(drop_criterion(model.state_dict()))


def test_pixels_are_reconstructed_through_a_head_of_their_own(make_trained: MakeTrained) -> None:
    model = make_trained("image_tiny", reconstruction_weight=1.0)
    output = model(images(0), STEP)
    output.loss.backward()

    assert model.get_parameter("criterion.recon_proj.weight").shape == (48, 96)
    assert model.get_parameter("criterion.recon_proj.weight").grad is not None
    assert output.metrics.keys() == set(model.criterion.metric_names)
    # Pixels are normalised: predicting nothing costs their variance, 47 of 48 unbiased.
    with torch.no_grad():
        model.criterion.recon_proj.weight.zero_()
        model.criterion.recon_proj.bias.zero_()
    loss = model(images(0), STEP).metrics["reconstruction_loss"]
    assert float(loss) == pytest.approx(47 * 96**-0.5, rel=1e-4)


def test_shared_decoder_has_a_loss_of_its_own(make_trained: MakeTrained) -> None:
    config = ARCHS["text_tiny"]()
    config.shared_decoder = DecoderConfig(dim=32, num_groups=1, num_layers=2)
    batch = Batch(Modality.TEXT, torch.randint(4, 900, (2, 24)), torch.tensor([0, 1]))
    model = make_trained(config, teacher_scope="blocks")

    model(batch, STEP).loss.backward()

    assert model.shared_decoder is not None
    assert all(p.grad is not None for p in model.shared_decoder.parameters())
    assert all(p.grad is not None for p in model.frontend().decoder.parameters())


def test_teacher_stays_frozen_and_in_evaluation_mode(make_trained: MakeTrained) -> None:
    model = make_trained("image_tiny")
    model.requires_grad_(True).train()
    teacher = model.criterion.teacher

    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any(module.training for module in teacher.modules())
    assert model.blocks.training
    assert not model.get_parameter("modality_encoders.IMAGE.fixed_positional_encoder.positions").requires_grad


def test_teacher_follows_the_student(make_trained: MakeTrained) -> None:
    model = make_trained("image_tiny", ema=EmaConfig(start=0.0, end=0.0, anneal_steps=1))
    model.criterion.after_step(model, 1)

    for average, current in model.criterion.teacher.pairs(model).values():
        assert torch.equal(average, current)


def test_modalities_have_their_own_masks_and_teacher_scopes(make_trained: MakeTrained) -> None:
    config = Data2VecConfig(image=ARCHS["image_tiny"]().image, text=ARCHS["text_tiny"]().text, dim=96, depth=2, num_heads=4)
    model = make_trained(config, cls_weight=1.0, modalities={"text": ModalityOverrides(teacher_scope="blocks", cls_weight=0.0)})
    teacher = model.criterion.teacher

    assert list(teacher.modality_encoders) == ["IMAGE"]
    text = Batch(Modality.TEXT, torch.randint(4, 900, (2, 24)), torch.tensor([0, 1]))
    assert model(text, STEP).num_targets == 2 * 3 * 12
    assert model(images(0, 1), STEP).num_targets == 2 * 3 * 48
    assert model(text, STEP).metrics["cls_loss"] == 0.0


def test_without_its_loss_a_decoder_has_no_gradient(make_trained: MakeTrained) -> None:
    """A gradient of zeros would let the optimizer decay it."""
    model = make_trained("image_tiny", regression_weight=0.0, cls_weight=1.0)
    output = model(images(0), STEP)
    output.loss.backward()

    assert output.metrics.keys() == set(model.criterion.metric_names)
    assert all(parameter.grad is None for parameter in model.frontend().decoder.parameters())
    assert model.blocks[0].attn.qkv.weight.grad is not None


@pytest.mark.parametrize("original_padding", [False, True])
def test_the_mean_target_leaves_padding_out_unless_the_original_is_asked_for(
    make_trained: MakeTrained, original_padding: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ARCHS["text_tiny"]()
    config.original_padding, config.text.num_extra_tokens = original_padding, 1
    model = make_trained(config, cls_weight=1.0)
    tokens = torch.randint(4, 900, (2, 16))
    tokens[1, 10:] = 1
    seen: list[Tensor] = []
    distance = model.criterion.distance
    monkeypatch.setattr(model.criterion, "distance", lambda x, y: (seen.append(y), distance(x, y))[1])

    batch = Batch(Modality.TEXT, tokens, torch.arange(2), tokens == 1, min_length=10)
    model(batch, STEP)
    with torch.no_grad():
        targets = model.criterion.compute_targets(model, batch, model.extract_local(tokens, tokens == 1))

    expected = targets[1].mean(dim=0) if original_padding else targets[1, :10].mean(dim=0)
    torch.testing.assert_close(seen[-1][-1], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction", ["mean", "tokens"])
def test_losses_of_whole_utterances_are_emotion2vecs(make_trained: MakeTrained, prediction: Any) -> None:
    """The mean of ten learned tokens, or of the frames that are seen, regresses the mean of the targets (arXiv 2312.15185)."""
    config = ARCHS["audio_tiny"]()
    assert config.audio is not None
    num_extra = 10 if prediction == "mean" else 0
    config = dataclasses.replace(config, audio=dataclasses.replace(config.audio, num_extra_tokens=num_extra))
    targets = TargetConfig(num_layers=2, layer_norm=True)
    model = make_trained(config, cls_weight=2.0, cls_prediction=prediction, targets=targets)
    batch = Batch(Modality.AUDIO, torch.randn(2, 8000, generator=torch.Generator().manual_seed(1)), torch.arange(2))
    criterion = model.criterion
    assert isinstance(criterion, Data2Vec2Criterion)

    output = criterion(model, batch, STEP)

    local = model.extract_local(batch.inputs)
    x = model.encode_views(local, criterion.draw_views(model, batch, local, STEP))
    predicted = x[:, :10].mean(dim=1) if num_extra else x.mean(dim=1)
    wanted = criterion.compute_targets(model, batch, local).mean(dim=1).repeat_interleave(3, dim=0)
    expected = 2.0 * (predicted - wanted).square().sum(dim=1).mean() * config.dim**-0.5
    assert float(output.metrics["cls_loss"]) == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("targets", "is_zero"),
    [
        (TargetConfig(), True),
        (TargetConfig(layer_norm=True), False),
        (TargetConfig(instance_norm_layers=False), False),
        (TargetConfig(layer_norm=True, instance_norm=True), True),
    ],
)
def test_targets_whose_mean_says_nothing_are_known(targets: TargetConfig, is_zero: bool) -> None:
    layers = [torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(i)) for i in range(2)]

    assert targets.mean_is_zero is is_zero is bool(make_targets(targets, layers).mean(dim=1).abs().max() < 1e-5)


def test_what_does_not_fit_is_refused(make_trained: MakeTrained) -> None:
    with pytest.raises(RecipeError, match="One of `regression_weight`, `cls_weight` and `reconstruction_weight` must be"):
        make_trained("image_tiny", regression_weight=0.0)
    with pytest.raises(RecipeError, match="set `num_extra_tokens` of `text`"):
        make_trained("text_tiny", cls_weight=1.0)
    with pytest.raises(RecipeError, match=r"`targets.num_layers` must be between 1 and the model's depth \(3\), but is 9"):
        make_trained("image_tiny", targets=TargetConfig(num_layers=9))
    with pytest.raises(ValueError, match="`num_views` must be at least 1"):
        Data2Vec2Criterion(Data2Vec2Config(num_views=0), SAMPLERS)
    with pytest.raises(ValueError, match="keys audio, image or text, but has `video`"):
        Data2Vec2Criterion(Data2Vec2Config(modalities={"video": ModalityOverrides()}), SAMPLERS)
