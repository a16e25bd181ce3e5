"""data2vec 1.0 computes what the original computes where the original is right, and what the paper says where it is not."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq2.recipe.error import RecipeError
from safetensors.torch import load_file
from torch import Tensor

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import LossOutput, StepInfo
from d2v_plugin.criteria.data2vec1.criterion import (
    Data2Vec1Config,
    Data2Vec1Criterion,
    context_window,
    covariance_loss,
    variance_loss,
)
from d2v_plugin.criteria.ema import EmaConfig, decay_at
from d2v_plugin.criteria.targets import TargetConfig
from d2v_plugin.masking.base import MaskSampler
from d2v_plugin.masking.published import BeitBlockMaskConfig, BeitBlockMaskSampler, SpanMaskConfig, SpanMaskSampler
from d2v_plugin.models.data2vec1.archs import ARCHS
from d2v_plugin.models.data2vec1.base import Data2Vec1Model, TeacherScope
from d2v_plugin.models.data2vec1.factory import create_model as create_model_v1
from d2v_plugin.models.data2vec2.archs import image_tiny
from d2v_plugin.models.data2vec2.factory import create_model
from d2v_plugin.training.optimizer import Data2VecAdamWConfig, build_adamw
from d2v_plugin.weights.convert.fairseq_data2vec1 import (
    convert_config_v1,
    convert_state_dict_v1,
    convert_teacher_v1,
    teacher_scope_v1,
)

GOLDEN = Path(__file__).parents[2] / "golden"
NAMES = ["audio", "text", "vision"]
STEP = StepInfo(number=1, seed=1)
PAD = 1


class Golden:
    """One model of the original and what came out of it."""

    def __init__(self, name: str) -> None:
        self.folder = GOLDEN / f"d2v1_{name}_tiny"
        self.config = json.loads((self.folder / "config.json").read_text())
        self.settings = self.config["model"]
        self.weights = self.load("weights", "model/")
        self.teacher = convert_teacher_v1(self.settings, self.load("weights", "ema/"))

    def load(self, name: str, prefix: str = "") -> dict[str, Any]:
        state = load_file(self.folder / f"{name}.safetensors")
        return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}

    def build(self, *, scope: TeacherScope, ema: EmaConfig | None = None, teacher: bool = True) -> tuple[Any, Data2Vec1Criterion]:
        """
        :param teacher: load the original's; its unaveraged parts are not the student's either, before the first step.
        """
        state = convert_state_dict_v1(self.settings, self.weights)
        config = convert_config_v1(self.settings, state)
        config.original_padding = True
        model = create_model_v1(config)
        model.load_state_dict(state)
        settings = self.settings
        criterion = Data2Vec1Criterion(
            Data2Vec1Config(
                teacher_scope=scope,
                targets=TargetConfig(
                    num_layers=settings["average_top_k_layers"],
                    instance_norm_layers=settings["instance_norm_target_layer"],
                    layer_norm_layers=settings["layer_norm_target_layer"],
                    layer_norm=settings["layer_norm_targets"],
                ),
                target_feature="block" if settings.get("end_of_block_targets") else "ffn",
                loss_beta=settings["loss_beta"],
                loss_scale=settings["loss_scale"],
                ema=ema
                or EmaConfig(
                    start=settings["ema_decay"], end=settings["ema_end_decay"], anneal_steps=settings["ema_anneal_end_step"]
                ),
            ),
            SpanMaskSampler(SpanMaskConfig()),
        )
        criterion.build(model)
        if teacher:
            criterion.teacher.load_state_dict(self.teacher, strict=False)
        model.criterion = criterion
        model.train()
        model.requires_grad_(True)

        return model, criterion

    def make_batch(self, io: dict[str, Tensor]) -> tuple[Batch, Tensor]:
        mask = io["mask"].flatten(1).bool()
        ids = torch.arange(mask.size(0))
        if "img" in io:
            return Batch(Modality.IMAGE, io["img"], ids), mask
        if "source" in io:
            return Batch(Modality.AUDIO, io["source"], ids, io["padding_mask"].bool()), mask
        return Batch(Modality.TEXT, io["target_tokens"], ids, io["target_tokens"].eq(PAD)), mask


@pytest.fixture(params=NAMES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """max |a - b| / max(1, max |b|), the measure that golden/README.md proposes."""
    assert actual.shape == expected.shape
    assert float((actual - expected).detach().abs().max()) <= tolerance * max(1.0, float(expected.detach().abs().max()))


def test_losses_and_every_gradient(golden: Golden) -> None:
    model, criterion = golden.build(scope="encoder")
    io = golden.load("io_pretrain")
    batch, mask = golden.make_batch(io)

    output = criterion(model, batch, STEP, mask=mask)
    (output.loss / output.num_targets).backward()

    assert output.num_targets == int(io["sample_size"])
    assert output.loss.item() == pytest.approx(float(io["losses_sum/total"]), rel=1e-5)
    if "target_var" in io:
        assert float(output.metrics["target_deviation"]) == pytest.approx(float(io["target_var"]), rel=1e-5)
        assert float(output.metrics["prediction_deviation"]) == pytest.approx(float(io["pred_var"]), rel=1e-5)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    expected = golden.load("io_pretrain", "grad/")
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert_close(gradient, expected[name])


def test_teacher_taps_targets_and_predictions(golden: Golden) -> None:
    model, criterion = golden.build(scope="encoder")
    io = golden.load("io_pretrain")
    batch, mask = golden.make_batch(io)
    extra = model.num_extra_tokens

    with torch.no_grad():
        local = model.extract_local(batch.inputs, batch.padding_mask)
        encoder = criterion.teacher.context_encoder
        outputs = list(encoder.run(encoder.prepare(local.x, local.padding_mask)))
        targets = criterion._make_targets(model, batch, local.x, local.padding_mask)[mask]
        x = criterion._encode_masked(model, local, mask, torch.zeros(2, dtype=torch.int64))
        predictions = model.predict(x[:, extra:][mask])

    valid = torch.ones_like(mask) if batch.modality is not Modality.TEXT else ~batch.padding_mask
    for i, output in enumerate(outputs):
        feature = getattr(output, criterion.config.target_feature)
        assert_close(feature[:, extra:][valid], io[f"teacher_tap.{i}"][valid])
    assert_close(targets, io["targets_masked"])
    assert_close(predictions, io["pred_masked"])


def test_one_step_of_the_average(golden: Golden) -> None:
    scope = teacher_scope_v1(golden.settings)
    model, criterion = golden.build(scope=scope)
    schedule = golden.config["ema"]

    for step, decay in schedule["decay_schedule"].items():
        assert decay_at(criterion.config.ema, int(step)) == pytest.approx(decay, rel=1e-9)
    criterion.after_step(model, schedule["step"])

    # What is skipped is copied from the student, which is to say that both share it.
    whole = {**model.state_dict(), **criterion.teacher.state_dict()}
    expected = convert_teacher_v1(golden.settings, golden.load("io_ema", "ema_after/"))
    assert expected
    for name, value in expected.items():
        if name.startswith("encoder.norm."):
            continue  # averaged by the original, and not used
        assert_close(whole[name], value, 1e-6)


def test_student_and_teacher_after_four_updates(golden: Golden) -> None:
    """fairseq's trainer, its Adam and its schedules: loss and gradient norm of each update, then all weights."""
    io, trace = golden.load("io_pretrain"), golden.config["trainer"]
    overrides = trace["overrides"]
    ema = EmaConfig(
        start=overrides["model.ema_decay"],
        end=overrides["model.ema_end_decay"],
        anneal_steps=overrides["model.ema_anneal_end_step"],
    )
    model, criterion = golden.build(scope=teacher_scope_v1(golden.settings), ema=ema, teacher=False)
    batch, mask = golden.make_batch(io)
    group = trace["param_groups"][0]
    optimizer = build_adamw(
        model,
        Data2VecAdamWConfig(
            betas=tuple(group["betas"]), eps=group["eps"], weight_decay=group["weight_decay"], decay_all=True, fairseq_eps=True
        ),
    )
    parameters = [p for p in model.parameters() if p.requires_grad]

    for i, update in enumerate(trace["log"], start=1):
        output = criterion(model, batch, STEP, mask=mask)
        (output.loss / output.num_targets).backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, trace["clip_norm"] or math.inf)
        assert output.loss.item() / output.num_targets == pytest.approx(update["loss"], rel=1e-4)
        assert float(norm) == pytest.approx(update["gnorm"], rel=1e-4)
        for param_group in optimizer.param_groups:
            param_group["lr"] = update["lr"]
        optimizer.step()
        optimizer.zero_grad()
        if i < len(trace["log"]):  # the original's teacher lags one update behind at the end
            criterion.after_step(model, i)

    state = model.state_dict()
    student = convert_state_dict_v1(golden.settings, golden.load("trainer", "student_final/"))
    teacher = convert_teacher_v1(golden.settings, golden.load("trainer", "teacher_final/"))
    assert student and teacher
    for name, value in student.items():
        # The gradient of a key's bias is zero but for round-off, which Adam turns into steps.
        if not name.endswith("k_proj.bias"):
            assert_close(state[name], value)
    for name, value in criterion.teacher.state_dict().items():
        if name in teacher and not name.endswith("k_proj.bias"):
            assert_close(value, teacher[name])


def make_model(arch: str, **changes: Any) -> Data2Vec1Model:
    torch.manual_seed(0)
    config = ARCHS[arch]()
    for name, value in changes.items():
        setattr(config, name, value)

    return create_model_v1(config).train()


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

    assert_close(model(reordered, STEP).loss, loss)
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
    criterion = make_criterion(model)
    batch = make_batch(model)
    mask = torch.zeros(3, 24, dtype=torch.bool)
    mask[:, :4] = True

    targets = criterion._make_targets(model, batch, batch.inputs, None)
    changed = copy.deepcopy(batch)
    changed.inputs[:, 20] = 7

    assert not torch.allclose(criterion._make_targets(model, changed, changed.inputs, None)[mask], targets[mask])


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
    shared = [getattr(model.context_encoder, name) for name in model.context_encoder.position_modules]

    assert names
    assert not names & {n for n, p in model.named_parameters() for m in shared for q in m.parameters() if p is q}
    before = {name: p.clone() for name, p in criterion.teacher.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    criterion.after_step(model, 1)
    for name, parameter in criterion.teacher.named_parameters():
        assert_close(parameter, before[name] + 0.5, 1e-6)


@pytest.mark.parametrize("arch", TINY)
def test_the_teacher_never_drops_out(arch: str) -> None:
    model = make_model(arch, dropout=0.5, attention_dropout=0.5, layer_drop=0.5, drop_path=0.5)
    criterion = make_criterion(model)
    batch = make_batch(model)
    local = model.embed(batch.inputs)

    assert model.training and not criterion.teacher.training
    targets = [criterion._make_targets(model, batch, local, None) for _ in range(2)]
    assert torch.equal(*targets)


@pytest.mark.parametrize("arch", TINY)
@pytest.mark.parametrize("feature", ["ffn", "ffn_residual", "block", "attention"])
def test_target_features_differ_unless_they_are_the_same(arch: str, feature: Any) -> None:
    model = make_model(arch)
    batch = make_batch(model)
    local = model.embed(batch.inputs)
    default = make_criterion(model)._make_targets(model, batch, local, None)

    targets = make_criterion(model, target_feature=feature)._make_targets(model, batch, local, None)

    assert torch.equal(targets, default) == (feature == "ffn")


@pytest.mark.parametrize("arch", ["text_tiny", "vision_tiny"])
def test_a_restricted_context_hides_what_is_far(arch: str) -> None:
    model = make_model(arch)
    # Without statistics over the sample, which see everything.
    plain = TargetConfig(num_layers=1, instance_norm_layers=False)
    criterion = make_criterion(model, target_window=1, targets=plain)
    batch = make_batch(model)
    changed = copy.deepcopy(batch)
    if arch == "text_tiny":
        changed.inputs[:, -1] = 7
        far = 24 - 1 - 4 - 1  # four blocks see four positions away
    else:
        changed.inputs[:, :, :, -4:] += 1.0
        far = 8 - 1 - 4 - 1

    before = criterion._make_targets(model, batch, model.embed(batch.inputs), None)
    after = criterion._make_targets(model, changed, model.embed(changed.inputs), None)

    width = 24 if arch == "text_tiny" else 8
    difference = (before - after).abs().amax(dim=-1).view(3, -1, width).amax(dim=(0, 1))
    assert float(difference[: far + 1].max()) < 1e-6
    assert float(difference[far + 2 :].min()) > 0.0
    everything = make_criterion(model, targets=plain)._make_targets(model, batch, model.embed(batch.inputs), None)
    assert not torch.allclose(everything, before)


def test_windows_are_squares_in_images_and_class_tokens_do_not_leak() -> None:
    window = context_window(9, torch.tensor([1.0]), is_image=True, num_extra_tokens=1)[0]

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
        Data2Vec1Config(**settings)


def test_models_that_it_cannot_train_are_refused() -> None:
    criterion = Data2Vec1Criterion(Data2Vec1Config(), SpanMaskSampler(SpanMaskConfig()))

    with pytest.raises(RecipeError, match="trains models of the family `data2vec1`"):
        criterion.build(create_model(image_tiny()))  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"`targets\.num_layers` must be between 1 and the model's depth"):
        criterion.build(make_model("text_tiny"))
