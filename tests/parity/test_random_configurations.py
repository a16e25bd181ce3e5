"""Checkpoints of random configurations of the original, converted, compute what it computed; see tests/golden/fuzz/FORMAT.txt."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from comparison import GOLDEN, STEP, assert_close, strip_prefix
from safetensors.torch import load_file
from torch import Tensor

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.criteria.data2vec1.criterion import Data2Vec1Config, Data2Vec1Criterion
from d2v_plugin.criteria.data2vec2.criterion import Data2Vec2Config, Data2Vec2Criterion
from d2v_plugin.criteria.ema import EmaConfig
from d2v_plugin.criteria.targets import TargetConfig
from d2v_plugin.masking.random_blocks import RandomMaskConfig, RandomMaskSampler
from d2v_plugin.masking.spans_and_beit import SpanMaskConfig, SpanMaskSampler
from d2v_plugin.models.families import create_model
from d2v_plugin.weights.convert.fairseq import convert_fairseq
from d2v_plugin.weights.directory import ModelDirectory

NAMES = sorted(path.name for path in (GOLDEN / "fuzz").iterdir() if path.is_dir())
EMA_KEYS = ("_ema", "encoder._ema")


@pytest.fixture(params=NAMES)
def folder(request: pytest.FixtureRequest) -> Path:
    return GOLDEN / "fuzz" / request.param


def convert(folder: Path, tmp_path: Path) -> ModelDirectory:
    """Convert the file that fairseq's trainer would have written."""
    tensors = load_file(folder / "weights.safetensors")
    weights: dict[str, Any] = strip_prefix(tensors, "model/")
    for key in EMA_KEYS:
        if teacher := strip_prefix(tensors, f"ema/{key}/"):
            weights[key] = teacher
    settings = json.loads((folder / "config.json").read_text())["model"]
    path = tmp_path / "checkpoint.pt"
    torch.save({"cfg": {"model": settings}, "model": weights, "optimizer_history": []}, path)

    return convert_fairseq(path, original_padding=True)


def attach_criterion(model: Any, directory: ModelDirectory, num_views_per_gpu: int) -> Any:
    """The original's objective as the converted directory describes it, with its teacher."""
    found = dict(directory.info["pretraining"])
    found["ema"], found["targets"] = EmaConfig(**found["ema"]), TargetConfig(**found["targets"])
    if "num_views" in found:
        (found["teacher_scope"],) = found["teacher_scope"].values()
        found["cls_weight"] = found["cls_loss_per_gpu"] * num_views_per_gpu
        names = {field.name for field in fields(Data2Vec2Config)}
        sampler = RandomMaskSampler(RandomMaskConfig())
        criterion: Any = Data2Vec2Criterion(
            Data2Vec2Config(**{key: value for key, value in found.items() if key in names}), dict.fromkeys(Modality, sampler)
        )
    else:
        names = {field.name for field in fields(Data2Vec1Config)}
        criterion = Data2Vec1Criterion(
            Data2Vec1Config(**{key: value for key, value in found.items() if key in names}), SpanMaskSampler(SpanMaskConfig())
        )
    criterion.build(model)
    assert directory.teacher is not None
    missing, _ = criterion.teacher.load_state_dict(directory.teacher, strict=False)
    assert not missing
    model.criterion = criterion
    model.train()
    model.requires_grad_(True)
    model.freeze_constants()

    return criterion


def make_batch(model: Any, io: dict[str, Tensor]) -> Batch:
    (modality,) = model.config.frontends
    padding_mask = io.get("padding_mask")

    return Batch(modality, io["source"], torch.arange(len(io["source"])), None if padding_mask is None else padding_mask.bool())


def test_features(folder: Path, tmp_path: Path) -> None:
    directory = convert(folder, tmp_path)
    model = create_model(directory.config)
    model.load_state_dict(directory.student)
    model.eval()
    io = load_file(folder / "io.safetensors")
    batch = make_batch(model, io)

    with torch.no_grad():
        features = model.extract_features(batch.inputs, batch.padding_mask)

    valid = torch.ones(features.x.shape[:2], dtype=torch.bool) if features.padding_mask is None else ~features.padding_mask
    num_tokens = features.x.size(1)
    assert_close(features.x[valid], io["feat/x"][:, -num_tokens:][valid])
    for i, layer in enumerate(features.layers):
        assert_close(layer[valid], io[f"feat/block.{i}"][:, -num_tokens:][valid])


def test_losses_and_every_gradient(folder: Path, tmp_path: Path) -> None:
    directory = convert(folder, tmp_path)
    model = create_model(directory.config)
    model.load_state_dict(directory.student)
    io = load_file(folder / "io.safetensors")
    batch, mask = make_batch(model, io), io["mask"].bool()
    criterion = attach_criterion(model, directory, len(mask))

    given = {"mask": mask, "noise": io["noise"]} if "noise" in io else {"mask": mask}
    output = criterion(model, batch, STEP, **given)
    (output.loss / output.num_targets).backward()

    assert output.num_targets == int(io["sample_size"])
    assert output.loss.item() == pytest.approx(float(io["total"]), rel=1e-5)
    assert float(output.metrics["target_deviation"]) == pytest.approx(float(io["target_var"]), rel=1e-5)
    assert float(output.metrics["prediction_deviation"]) == pytest.approx(float(io["pred_var"]), rel=1e-5)
    if "targets" in io:
        with torch.no_grad():
            local = model.extract_local(batch.inputs, batch.padding_mask, modality=batch.modality)
            targets = criterion.compute_targets(model, batch, local)
        valid = torch.ones(targets.shape[:2], dtype=torch.bool) if local.padding_mask is None else ~local.padding_mask
        assert_close(targets[valid], io["targets"][valid])
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    expected = strip_prefix(io, "grad/")
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert_close(gradient, expected[name])
