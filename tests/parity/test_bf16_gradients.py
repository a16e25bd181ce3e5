"""Under bfloat16 gradients are as close to those of fp32 as the original's are, to a tenth."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import LossOutput, StepInfo
from d2v_plugin.criteria.data2vec1.criterion import Data2Vec1Config, Data2Vec1Criterion
from d2v_plugin.criteria.targets import TargetConfig
from d2v_plugin.masking.random_blocks import RandomMaskConfig, RandomMaskSampler
from d2v_plugin.models.data2vec1.base import TeacherScope
from d2v_plugin.models.data2vec1.factory import create_model
from d2v_plugin.weights.convert.fairseq_data2vec1 import convert_config, convert_state_dict, convert_teacher

GOLDEN = Path(__file__).parents[1] / "golden"
STEP = StepInfo(number=1, seed=1)
TOLERANCE = 1.1

# Errors of the original's code on the weights, batches, masks and noise of our goldens.
DATA2VEC2 = {"image": 0.003340, "audio": 0.013054, "text": 0.013597}
DATA2VEC1 = {"audio": 0.015661, "text": 0.007202, "vision": 0.000914}


def gradient_error(model: nn.Module, run: Callable[[], LossOutput]) -> float:
    """|g_bf16 - g_fp32| / |g_fp32| over all parameters, under CPU autocast."""
    gradients: list[Tensor] = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = run()
        (output.loss / output.num_targets).backward()
        gradients.append(torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None]))
    exact, rounded = gradients

    return float((rounded - exact).norm() / exact.norm())


def test_data2vec2(golden: Any) -> None:
    io = golden.load("io_pretrain")
    model = golden.build_model().train()
    criterion = golden.attach_criterion(model, io["source"].size(0))
    batch, mask, noise = golden.make_batch(io)

    error = gradient_error(model, lambda: criterion(model, batch, STEP, mask=mask, noise=noise))

    assert error <= TOLERANCE * DATA2VEC2[golden.modality.value]


def read_targets(settings: dict[str, Any]) -> TargetConfig:
    names = {
        "num_layers": "average_top_k_layers",
        "batch_norm_layers": "batch_norm_target_layer",
        "instance_norm_layers": "instance_norm_target_layer",
        "layer_norm_layers": "layer_norm_target_layer",
        "layer_norm": "layer_norm_targets",
        "instance_norm": "instance_norm_targets",
    }

    return TargetConfig(**{ours: settings.get(theirs, False) for ours, theirs in names.items()})


def load_weights(folder: Path, prefix: str) -> dict[str, Tensor]:
    weights = load_file(folder / "weights.safetensors")

    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def build_data2vec1(
    settings: dict[str, Any], student: dict[str, Tensor], teacher: dict[str, Tensor], scope: TeacherScope
) -> tuple[Any, Data2Vec1Criterion]:
    state = convert_state_dict(settings, student)
    config = convert_config(settings, state)
    config.original_padding = True
    model = create_model(config)
    model.load_state_dict(state)
    criterion = Data2Vec1Criterion(
        Data2Vec1Config(
            teacher_scope=scope,
            targets=read_targets(settings),
            target_feature="block" if settings.get("end_of_block_targets") else "ffn",
            loss_beta=settings["loss_beta"],
            loss_scale=settings["loss_scale"],
        ),
        RandomMaskSampler(RandomMaskConfig()),
    )
    criterion.build(model)
    criterion.teacher.load_state_dict(teacher, strict=False)
    model.criterion = criterion
    model.train()
    model.requires_grad_(True)

    return model, criterion


@pytest.mark.parametrize("name", DATA2VEC1)
def test_data2vec1(name: str) -> None:
    folder = GOLDEN / f"d2v1_{name}_tiny"
    settings = json.loads((folder / "config.json").read_text())["model"]
    teacher = convert_teacher(settings, load_weights(folder, "ema/"))
    model, criterion = build_data2vec1(settings, load_weights(folder, "model/"), teacher, "encoder")
    io = load_file(folder / "io_pretrain.safetensors")
    mask = io["mask"].flatten(1).bool()
    ids = torch.arange(mask.size(0))
    if name == "vision":
        batch = Batch(Modality.IMAGE, io["img"], ids)
    elif name == "audio":
        batch = Batch(Modality.AUDIO, io["source"], ids, io["padding_mask"].bool())
    else:
        batch = Batch(Modality.TEXT, io["target_tokens"], ids, io["target_tokens"].eq(1))

    error = gradient_error(model, lambda: criterion(model, batch, STEP, mask=mask))

    assert error <= TOLERANCE * DATA2VEC1[name]


def test_images_of_data2vec1_with_settings_drawn_at_random() -> None:
    folder = GOLDEN / "fuzz" / "image1_0"
    record = json.loads((folder / "config.json").read_text())
    settings = record["model"] | {"ema_transformer_only": True}  # the teacher of the whole model is loaded below
    student = load_weights(folder, "model/")
    model, criterion = build_data2vec1(settings, student, load_weights(folder, "ema/_ema/"), "all")
    io = load_file(folder / "io.safetensors")
    batch = Batch(Modality.IMAGE, io["source"], torch.arange(io["source"].size(0)))
    mask = io["mask"].bool()

    def run() -> LossOutput:
        return criterion(model, batch, STEP, mask=mask)  # type: ignore[no-any-return]

    assert run().loss.item() == pytest.approx(float(io["total"]), rel=1e-5)
    assert gradient_error(model, run) <= TOLERANCE * record["bf16_gradient_error_of_the_original"]


def test_a_teacher_in_full_precision_ignores_autocast() -> None:
    folder = GOLDEN / "fuzz" / "image1_0"
    settings = json.loads((folder / "config.json").read_text())["model"] | {"ema_transformer_only": True}
    student, teacher = load_weights(folder, "model/"), load_weights(folder, "ema/_ema/")
    io = load_file(folder / "io.safetensors")
    batch = Batch(Modality.IMAGE, io["source"], torch.arange(io["source"].size(0)))

    def targets(*, full: bool, autocast: bool) -> Tensor:
        model, criterion = build_data2vec1(settings, student, teacher, "all")
        criterion.config.full_precision_teacher = full
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            observation = criterion(model, batch, STEP, mask=io["mask"].bool()).observation
        assert observation is not None and observation.targets is not None

        return observation.targets

    exact = targets(full=False, autocast=False)
    assert torch.equal(targets(full=True, autocast=True), exact)
    assert not torch.equal(targets(full=False, autocast=True), exact)
