"""data2vec 1.0 computes what the original computes where the original is right, in fp32 to 1e-5."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from comparison import GOLDEN, STEP, assert_close, assert_gradients, read_ema, strip_prefix, train
from safetensors.torch import load_file
from torch import Tensor

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.criteria.data2vec1.criterion import Data2Vec1Config, Data2Vec1Criterion
from d2v_plugin.criteria.ema import EmaConfig, decay_at
from d2v_plugin.criteria.targets import TargetConfig
from d2v_plugin.masking.spans_and_beit import SpanMaskConfig, SpanMaskSampler
from d2v_plugin.models.data2vec1.base import TeacherScope
from d2v_plugin.models.data2vec1.factory import create_model
from d2v_plugin.weights.convert.fairseq_data2vec1 import (
    convert_config,
    convert_state_dict,
    convert_teacher,
    teacher_scope,
)

NAMES = ["audio", "text", "vision"]
PAD = 1


class Golden:
    """One model of the original and what came out of it."""

    def __init__(self, name: str) -> None:
        self.folder = GOLDEN / f"d2v1_{name}_tiny"
        self.config = json.loads((self.folder / "config.json").read_text())
        self.settings = self.config["model"]
        self.weights = self.load("weights", "model/")
        self.teacher = convert_teacher(self.settings, self.load("weights", "ema/"))

    def load(self, name: str, prefix: str = "") -> dict[str, Any]:
        return strip_prefix(load_file(self.folder / f"{name}.safetensors"), prefix)

    def build(self, *, scope: TeacherScope, ema: EmaConfig | None = None, teacher: bool = True) -> tuple[Any, Data2Vec1Criterion]:
        """
        :param teacher: load the original's; its unaveraged parts are not the student's either, before the first step.
        """
        state = convert_state_dict(self.settings, self.weights)
        config = convert_config(self.settings, state)
        config.original_padding = True
        model = create_model(config)
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
                ema=ema or read_ema(settings),
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
    assert_gradients(model, io)


def test_teacher_taps_targets_and_predictions(golden: Golden) -> None:
    model, criterion = golden.build(scope="encoder")
    io = golden.load("io_pretrain")
    batch, mask = golden.make_batch(io)
    extra = model.num_extra_tokens

    with torch.no_grad():
        local = model.extract_local(batch.inputs, batch.padding_mask)
        outputs = list(criterion.teacher(model, batch, local))
        targets = criterion.compute_targets(model, batch, local)[mask]
        x = criterion.encode_masked(model, local, mask, STEP.keys(batch.ids))
        predictions = model.predict(x[:, extra:][mask])

    # Padded positions too: they are in the original's statistics.
    for i, output in enumerate(outputs):
        feature = getattr(output, criterion.config.target_feature)
        assert_close(feature[:, extra:], io[f"teacher_tap.{i}"])
    assert_close(targets, io["targets_masked"])
    assert_close(predictions, io["pred_masked"])


def test_one_step_of_the_average(golden: Golden) -> None:
    scope = teacher_scope(golden.settings)
    model, criterion = golden.build(scope=scope)
    schedule = golden.config["ema"]

    for step, decay in schedule["decay_schedule"].items():
        assert decay_at(criterion.config.ema, int(step)) == pytest.approx(decay, rel=1e-9)
    criterion.after_step(model, schedule["step"])

    # What is skipped is copied from the student, which is to say that both share it.
    whole = {**model.state_dict(), **criterion.teacher.state_dict()}
    expected = convert_teacher(golden.settings, golden.load("io_ema", "ema_after/"))
    assert expected
    for name, value in expected.items():
        if name.startswith("encoder.norm."):
            continue  # averaged by the original, and not used
        assert_close(whole[name], value, 1e-6)


def test_student_and_teacher_after_four_updates(golden: Golden) -> None:
    """fairseq's trainer, its Adam and its schedules: loss and gradient norm of each update, then all weights."""
    io, trace = golden.load("io_pretrain"), golden.config["trainer"]
    ema = read_ema(trace["overrides"], "model.")
    model, criterion = golden.build(scope=teacher_scope(golden.settings), ema=ema, teacher=False)
    batch, mask = golden.make_batch(io)

    train(trace, model, criterion, lambda: criterion(model, batch, STEP, mask=mask))

    state = model.state_dict()
    student = convert_state_dict(golden.settings, golden.load("trainer", "student_final/"))
    teacher = convert_teacher(golden.settings, golden.load("trainer", "teacher_final/"))
    assert student and teacher
    for name, value in student.items():
        # The gradient of a key's bias is zero but for round-off, which Adam turns into steps.
        if not name.endswith("k_proj.bias"):
            assert_close(state[name], value)
    for name, value in criterion.teacher.state_dict().items():
        if name in teacher and not name.endswith("k_proj.bias"):
            assert_close(value, teacher[name])
