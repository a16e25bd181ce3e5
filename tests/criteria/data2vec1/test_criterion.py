"""The objective of data2vec 1.0 beyond parity: the paper where the original does something else, randomness, options."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from fairseq2.recipe.error import RecipeError
from torch import Tensor

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import LossOutput, StepInfo
from d2v_plugin.criteria.data2vec1.context import context_window
from d2v_plugin.criteria.data2vec1.criterion import Data2Vec1Config, Data2Vec1Criterion, covariance_loss, variance_loss
from d2v_plugin.criteria.ema import EmaConfig
from d2v_plugin.criteria.targets import TargetConfig
from d2v_plugin.masking.base import MaskSampler
from d2v_plugin.masking.spans_and_beit import BeitBlockMaskConfig, BeitBlockMaskSampler, SpanMaskConfig, SpanMaskSampler
from d2v_plugin.models.data2vec1.archs import ARCHS
from d2v_plugin.models.data2vec1.base import Data2Vec1Model, TeacherScope
from d2v_plugin.models.data2vec1.factory import create_model as create_data2vec1
from d2v_plugin.models.data2vec2.archs import image_tiny
from d2v_plugin.models.data2vec2.factory import create_model

STEP = StepInfo(number=1, seed=1)
PAD = 1


def make_model(arch: str, **changes: Any) -> Data2Vec1Model:
    torch.manual_seed(0)
    config = ARCHS[arch]()
    for name, value in changes.items():
        setattr(config, name, value)

    return create_data2vec1(config).train()


def make_criterion(model: Data2Vec1Model, sampler: MaskSampler | None = None, **settings: Any) -> Data2Vec1Criterion:
    if sampler is None:
        images = BeitBlockMaskSampler(BeitBlockMaskConfig(num_patches=38, min_block=4))
        sampler = images if model.config.image is not None else SpanMaskSampler(SpanMaskConfig(length=3))
    settings.setdefault("targets", TargetConfig(num_layers=2))
    criterion = Data2Vec1Criterion(Data2Vec1Config(**settings), sampler)
    criterion.build(model)
    model.criterion = criterion
    model.train()
    model.requires_grad_(True)

    return criterion


def make_batch(model: Data2Vec1Model, num_samples: int = 3) -> Batch:
    ids = torch.arange(num_samples)
    match model.config.modality:
        case Modality.AUDIO:
            return Batch(Modality.AUDIO, torch.randn(num_samples, 8000), ids)
        case Modality.TEXT:
            return Batch(Modality.TEXT, torch.randint(4, 900, (num_samples, 24)), ids)
    return Batch(Modality.IMAGE, torch.randn(num_samples, 3, 32, 32), ids)


def compute_targets(model: Data2Vec1Model, batch: Batch) -> Tensor:
    criterion = model.criterion
    assert isinstance(criterion, Data2Vec1Criterion)

    return criterion.compute_targets(model, batch, model.extract_local(batch.inputs, batch.padding_mask))


TINY = ["audio_tiny", "text_tiny", "vision_tiny"]


@pytest.mark.parametrize("arch", TINY)
@pytest.mark.parametrize("scope", ["layers", "encoder", "all"])
def test_every_student_parameter_and_no_teacher_parameter_gets_a_gradient(arch: str, scope: TeacherScope) -> None:
    model = make_model(arch)
    make_criterion(model, teacher_scope=scope)

    output: LossOutput = model(make_batch(model), STEP)
    output.loss.backward()

    assert output.loss.isfinite()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith("criterion."), name


@pytest.mark.parametrize("arch", TINY)
def test_metrics_have_the_announced_names(arch: str) -> None:
    model = make_model(arch)
    criterion = make_criterion(model, variance_weight=1.0, covariance_weight=1.0)

    output = model(make_batch(model), STEP)

    assert set(output.metrics) == set(criterion.metric_names)
    terms = [output.metrics[f"{name}_loss"] for name in ("regression", "variance", "covariance")]
    assert float(sum(terms)) == pytest.approx(output.loss.item() / output.num_targets, rel=1e-5)
    assert all(not metric.requires_grad for metric in output.metrics.values())


@pytest.mark.parametrize("arch", TINY)
def test_masks_depend_on_seed_step_and_sample_only(arch: str) -> None:
    model = make_model(arch)
    criterion = make_criterion(model)
    batch = make_batch(model)
    reordered = copy.deepcopy(batch)
    reordered.inputs, reordered.ids = batch.inputs.flip(0), batch.ids.flip(0)

    loss = model(batch, STEP).loss

    torch.testing.assert_close(model(reordered, STEP).loss, loss, rtol=1e-5, atol=1e-5)
    assert model(batch, StepInfo(number=2, seed=1)).loss != loss
    assert criterion(model, batch, StepInfo(number=1, seed=2)).loss != loss


def test_the_number_of_targets_is_that_of_the_mask() -> None:
    model = make_model("text_tiny")
    criterion = make_criterion(model)

    output = model(make_batch(model), STEP)

    assert output.num_targets == 3 * criterion.sampler.num_masked(24)


@pytest.mark.parametrize("arch", ["audio_tiny", "text_tiny"])
@pytest.mark.parametrize("context", [{}, {"target_window": 3}, {"target_context": 0.5}])
def test_padding_does_not_change_the_loss(arch: str, context: dict[str, Any]) -> None:
    model = make_model(arch)
    criterion = make_criterion(model, **context)
    alone = make_batch(model, 1)
    length = model.output_length(alone.inputs.size(1))
    mask = torch.arange(length).unsqueeze(0) % 3 == 1
    extra = 4000 if arch == "audio_tiny" else 9
    padding = torch.full((1, extra), PAD) if arch == "text_tiny" else torch.randn(1, extra)
    padding_mask = torch.arange(alone.inputs.size(1) + extra).unsqueeze(0) >= alone.inputs.size(1)
    padded = Batch(alone.modality, torch.cat([alone.inputs, padding], dim=1), alone.ids, padding_mask, alone.inputs.size(1))
    longer = torch.nn.functional.pad(mask, (0, model.output_length(padded.inputs.size(1)) - length))

    loss = criterion(model, alone, STEP, mask=mask).loss

    assert criterion(model, padded, STEP, mask=longer).loss.item() == pytest.approx(loss.item(), rel=1e-5)
    drawn = criterion(model, padded, STEP)
    assert drawn.num_targets == criterion.sampler.num_masked(length)


def test_the_teacher_sees_the_whole_text() -> None:
    """Not only what is masked, as in fairseq #4881."""
    model = make_model("text_tiny")
    make_criterion(model)
    batch = make_batch(model)
    mask = torch.zeros(3, 24, dtype=torch.bool)
    mask[:, :4] = True

    targets = compute_targets(model, batch)
    changed = copy.deepcopy(batch)
    changed.inputs[:, 20] = 7

    assert not torch.allclose(compute_targets(model, changed)[mask], targets[mask])


def test_random_and_kept_tokens_are_targets_too() -> None:
    model = make_model("text_tiny")
    sampler = SpanMaskSampler(SpanMaskConfig(probability=0.5, length=1))
    make_criterion(model, sampler, random_tokens=0.1, kept_tokens=0.1)
    seen = []
    model.context_encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    batch = make_batch(model, 200)

    output = model(batch, STEP)

    student, teacher = seen
    assert torch.equal(teacher, batch.inputs)
    num_masks = int(student.eq(model.mask_idx).sum())  # type: ignore[operator]
    num_changed = int(student.ne(batch.inputs).sum())
    assert output.num_targets == 200 * 12
    assert num_masks / output.num_targets == pytest.approx(0.8, abs=0.03)
    assert (num_changed - num_masks) / output.num_targets == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize("arch", TINY)
def test_shared_modules_follow_the_student_at_once(arch: str) -> None:
    model = make_model(arch)
    criterion = make_criterion(model, teacher_scope="layers", ema=EmaConfig(start=0.5, end=0.5))
    names = {name for name, _ in criterion.teacher.named_parameters()}
    parts = [getattr(model.context_encoder, name) for name in model.context_encoder.position_modules]
    shared = [part for part in parts if part is not None]

    assert names and shared
    assert not names & {n for n, p in model.named_parameters() for m in shared for q in m.parameters() if p is q}
    before = {name: p.clone() for name, p in criterion.teacher.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    criterion.after_step(model, 1)
    for name, parameter in criterion.teacher.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name].detach() + 0.5, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("arch", TINY)
def test_shared_modules_stand_still_too_once_the_decay_is_1(arch: str) -> None:
    model = make_model(arch)
    criterion = make_criterion(model, teacher_scope="layers", ema=EmaConfig(start=0.5, end=1.0, anneal_steps=2))
    batch, name = make_batch(model), next(iter(model.context_encoder.position_modules))
    (position, *_) = dict(model.context_encoder.get_submodule(name).named_parameters(prefix=f"{model.encoder_name}.{name}"))

    def move_student() -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1)

    move_student()
    criterion.after_step(model, 1)
    assert criterion.teacher.get_parameter(position).equal(model.get_parameter(position))  # copied, not averaged
    frozen = {key: value.clone() for key, value in criterion.teacher.state_dict().items()}
    with torch.no_grad():
        local = model.extract_local(batch.inputs)
        before = [output.block for output in criterion.teacher(model, batch, local)]
        move_student()
        criterion.after_step(model, 2)
        after = [output.block for output in criterion.teacher(model, batch, local)]

    assert all(value.equal(frozen[key]) for key, value in criterion.teacher.state_dict().items())
    assert all(a.equal(b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("arch", TINY)
def test_the_teacher_never_drops_out(arch: str) -> None:
    model = make_model(arch, dropout=0.5, attention_dropout=0.5, layer_drop=0.5, drop_path=0.5)
    criterion = make_criterion(model)
    batch = make_batch(model)

    assert model.training and not criterion.teacher.training
    targets = [compute_targets(model, batch) for _ in range(2)]
    assert torch.equal(*targets)


@pytest.mark.parametrize("arch", TINY)
@pytest.mark.parametrize("feature", ["ffn", "ffn_residual", "block", "attention"])
def test_target_features_differ_unless_they_are_the_same(arch: str, feature: Any) -> None:
    model = make_model(arch)
    batch = make_batch(model)
    make_criterion(model)
    default = compute_targets(model, batch)

    make_criterion(model, target_feature=feature)
    targets = compute_targets(model, batch)

    assert torch.equal(targets, default) == (feature == "ffn")


@pytest.mark.parametrize("arch", ["text_tiny", "vision_tiny"])
def test_a_restricted_context_hides_what_is_far(arch: str) -> None:
    model = make_model(arch)
    # Without statistics over the sample, which see everything.
    plain = TargetConfig(num_layers=1, instance_norm_layers=False)
    make_criterion(model, target_window=1, targets=plain)
    batch = make_batch(model)
    changed = copy.deepcopy(batch)
    if arch == "text_tiny":
        changed.inputs[:, -1] = 7
        far = 24 - 1 - 4 - 1  # four blocks see four positions away
    else:
        changed.inputs[:, :, :, -4:] += 1.0
        far = 8 - 1 - 4 - 1

    before = compute_targets(model, batch)
    after = compute_targets(model, changed)

    width = 24 if arch == "text_tiny" else 8
    difference = (before - after).abs().amax(dim=-1).view(3, -1, width).amax(dim=(0, 1))
    assert float(difference[: far + 1].max()) < 1e-6
    assert float(difference[far + 2 :].min()) > 0.0
    make_criterion(model, targets=plain)
    assert not torch.allclose(compute_targets(model, batch), before)


def test_windows_are_squares_in_images_and_class_tokens_do_not_leak() -> None:
    window = context_window((3, 3), torch.tensor([1.0]), num_extra_tokens=1)[0]

    assert window[0].all()
    assert not window[1:, 0].any()
    assert window[1, 1:].view(3, 3).tolist() == [[True, True, False], [True, True, False], [False, False, False]]
    assert window[5, 1:].all()


def test_regulariser_punishes_collapse_and_correlation() -> None:
    spread = torch.randn(4000, 4) * 2
    assert float(variance_loss(spread, margin=1.0)) == 0.0
    assert float(variance_loss(torch.ones(10, 4), margin=1.0)) == pytest.approx(1.0, abs=1e-2)
    assert float(covariance_loss(spread)) < 0.1
    # Two channels with covariance c: 2 c^2 / D.
    x = torch.randn(4000, 1)
    expected = 2 * float(x.var()) ** 2 / 2
    assert float(covariance_loss(torch.cat([x, x], dim=1))) == pytest.approx(expected, rel=1e-4)


def test_training_lowers_the_loss() -> None:
    model = make_model("audio_tiny")  # predictions of images start at zero, which random images hardly improve on
    criterion = make_criterion(model, ema=EmaConfig(start=0.99, end=0.99), target_feature="block", loss_beta=2.0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    batch = make_batch(model, 8)
    losses = []
    for step in range(1, 41):
        output = model(batch, StepInfo(number=step, seed=1))
        optimizer.zero_grad()
        (output.loss / output.num_targets).backward()
        optimizer.step()
        criterion.after_step(model, step)
        losses.append(output.loss.item() / output.num_targets)

    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": TargetConfig(end_of_block=True)}, "set `target_feature: block` instead"),
        ({"target_context": 0.5, "target_window": 3}, "must not be given together"),
        ({"target_context": 1.5}, "`target_context` must be greater than 0"),
        ({"target_window": -1}, "`target_window` must be at least 0"),
        ({"random_tokens": 0.6, "kept_tokens": 0.6}, "at most 1 together"),
    ],
)
def test_settings_without_meaning_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Data2Vec1Criterion(Data2Vec1Config(**settings), SpanMaskSampler(SpanMaskConfig()))


def test_models_that_it_cannot_train_are_refused() -> None:
    config = Data2Vec1Config(targets=TargetConfig(num_layers=9))
    criterion = Data2Vec1Criterion(config, SpanMaskSampler(SpanMaskConfig()))

    with pytest.raises(RecipeError, match="trains models of the family `data2vec1`"):
        criterion.build(create_model(image_tiny()))  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"`targets\.num_layers` must be between 1 and the model's depth"):
        criterion.build(make_model("text_tiny"))
