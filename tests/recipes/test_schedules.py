"""Rates and decays of every recipe, by our schedulers and optimizer, are those that the originals' code gives."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq2.recipe import config as sections
from fairseq2.recipe.internal import lr_schedulers as factories
from fairseq2.utils.structured import StandardValueConverter
from resolution import dump, read_model
from torch import nn

from d2v_plugin.criteria.baselines.mae import MaeConfig, MaeCriterion
from d2v_plugin.criteria.ema import EmaConfig, decay_at
from d2v_plugin.criteria.supervised.classification import ClassificationConfig, ClassificationCriterion
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.masking.random_blocks import RandomMaskConfig, RandomMaskSampler
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.models.families import create_model
from d2v_plugin.training.optimizer import Data2VecAdamWConfig, group_parameters

CONTENT = json.loads((Path(__file__).parent / "schedules.json").read_text())
KINDS = {
    "cosine_annealing": (sections.CosineAnnealingLRConfig, factories._CosineAnnealingLRFactory),
    "tri_stage": (sections.TriStageLRConfig, factories._TriStageLRFactory),
    "polynomial_decay": (sections.PolynomialDecayLRConfig, factories._PolynomialDecayLRFactory),
}
# The last update of BEiT's warm-up has the full rate, ours the one after it.
TOLERANCE = 2e-4


def read(content: Any, kls: type) -> Any:
    return StandardValueConverter().structure(content, kls)


@pytest.mark.parametrize("name", CONTENT["schedules"])
def test_rates_and_decays_at_chosen_updates(command: Any, name: str) -> None:
    recorded, config = CONTENT["schedules"][name], dump(command, name)
    section, optimizer = config["lr_scheduler"], config["optimizer"]["config"]

    kls, factory = KINDS[section["name"]]
    peak = optimizer["lr"]
    regime = sections.RegimeSection(num_steps=config["regime"]["num_steps"])
    scheduler = factory(torch.optim.SGD([torch.zeros(1)], lr=peak), regime).create(read(section["config"], kls))
    # AudioSet's peak is the paper's.
    theirs = max(recorded["lr"].values()) if name == "audio/finetune_audioset.yaml" else peak
    start = 1e-6 if name.startswith("image/finetune_imagenet") else 0.0
    for update, rate in recorded["lr"].items():
        scheduler.last_epoch = int(update)
        found = scheduler._compute_lrs()[0] / peak
        assert found == pytest.approx(rate / theirs, rel=TOLERANCE, abs=1e-9 + start / peak), update

    for decay in recorded["weight_decay"].values():
        assert optimizer["weight_decay"] == pytest.approx(decay)
    for update, decay in recorded.get("ema", {}).items():
        ema = read(config["criterion"]["config"]["ema"], EmaConfig)
        assert 1 - decay_at(ema, int(update)) == pytest.approx(1 - decay, rel=1e-5, abs=1e-12), update


def build_groups(command: Any, name: str) -> tuple[EncoderModel, list[dict[str, Any]], Data2VecAdamWConfig]:
    """The model of a recipe with its criterion, without memory, and the groups of its optimizer."""
    config = dump(command, name)
    settings = read(config["optimizer"]["config"], Data2VecAdamWConfig)
    with torch.device("meta"):
        model = create_model(read_model(config["model"]))
        criterion: Any = None
        if config["criterion"]["name"] == "classification":
            criterion = ClassificationCriterion(read(config["criterion"]["config"], ClassificationConfig))
            criterion.set_labels(LabelSet([str(i) for i in range(1000)]))
        elif config["criterion"]["name"] == "mae":
            criterion = MaeCriterion(read(config["criterion"]["config"], MaeConfig), RandomMaskSampler(RandomMaskConfig()))
        if criterion is not None:
            criterion.build(model)
            model.criterion = criterion
            model.freeze_constants()

    return model, group_parameters(model, settings), settings


def names_of(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The group of every parameter that is trained."""
    group_of = {id(parameter): group for group in groups for parameter in group["params"]}

    return {name: group_of[id(p)] for name, p in model.named_parameters() if id(p) in group_of}


@pytest.mark.parametrize("name", CONTENT["layer_decay"])
def test_rates_of_layers(command: Any, name: str) -> None:
    model, groups, settings = build_groups(command, name)
    blocks = [*next(iter(getattr(model, "modality_encoders", {}).values())).context_encoder.blocks] if "imagenet" in name else []
    blocks += [*model.blocks]
    found = {name: group["lr"] / settings.lr for name, group in names_of(model, groups).items()}
    for i, block in enumerate(blocks):
        (found[f"block {i}"],) = {found[n] for n, p in model.named_parameters() if any(p is each for each in block.parameters())}

    expected = CONTENT["layer_decay"][name]
    assert {layer: found[layer] for layer in expected} == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", CONTENT["not_decayed"])
def test_parameters_without_weight_decay(command: Any, name: str) -> None:
    model, groups, settings = build_groups(command, name)
    decayed = {parameter: group["weight_decay"] > 0 for parameter, group in names_of(model, groups).items()}
    if settings.weight_decay == 0.0:
        settings.weight_decay = 1.0
        decayed = {n: group["weight_decay"] > 0 for n, group in names_of(model, group_parameters(model, settings)).items()}

    found = {re.sub(r"(?<=blocks\.)\d+", "#", parameter) for parameter, is_decayed in decayed.items() if not is_decayed}
    # Norms between positions and blocks, which MAE does not have.
    found -= {f"modality_encoders.IMAGE.context_encoder.norm.{kind}" for kind in ("weight", "bias")}
    assert found == set(CONTENT["not_decayed"][name])
