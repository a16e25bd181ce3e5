"""Small models of all families, with heads and random weights, written as directories and read for export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from fairseq2.recipe.component import ComponentManager
from fairseq2.runtime.dependency import DependencyContainer
from torch import nn

from d2v_plugin.core.fairseq2_private import StandardComponentManager, register_library
from d2v_plugin.core.registry import create
from d2v_plugin.criteria.base import Criterion, CriterionSection
from d2v_plugin.criteria.supervised.base import SupervisedCriterion
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.evaluation.checkpoint import attach_criterion
from d2v_plugin.exporting.exportable import Exportable, read_exportable
from d2v_plugin.models.base import drop_criterion
from d2v_plugin.models.families import FAMILIES, AnyConfig, create_model
from d2v_plugin.verbs.extensions import register_all
from d2v_plugin.weights.directory import ModelDirectory, write_directory
from d2v_plugin.weights.provenance import Provenance

SYMBOLS = LabelSet(["<blank>", "|", "a", "b", "c"])
CLASSES = LabelSet(["cat", "dog", "owl"])
SENTENCE_HEAD = {"pooling": "cls", "norm": False, "hidden": True}
_TASKS = {"ctc": "speech_recognition", "audio_tagging": "audio_classification"}


@cache
def create_container() -> DependencyContainer:
    container = DependencyContainer()
    register_library(container, no_progress=True)
    container.register_type(ComponentManager, StandardComponentManager)
    register_all(container, [])

    return container


def shrink(config: AnyConfig) -> AnyConfig:
    """A model of one block of width 16; sound has two convolutions, or spectrograms of four patches a row."""
    config = replace(config, dim=16, depth=1, num_heads=2)
    if hasattr(config, "ffn_dim"):
        config = replace(config, ffn_dim=32)
    if config.audio is not None:
        conv_layers = [(8, 10, 5), (8, 2, 2)]
        audio = replace(config.audio, conv_layers=conv_layers, position_width=5, position_depth=1, position_groups=2)
        config = replace(config, audio=audio)
    if getattr(config, "spectrogram", None) is not None:
        config = replace(config, spectrogram=replace(config.spectrogram, max_frames=320))
    if config.text is not None:
        config = replace(config, text=replace(config.text, vocab_size=60, position_scale=0.5))
    if config.image is not None:
        config = replace(config, image=replace(config.image, image_size=16))
    for frontend in config.frontends.values():
        if getattr(frontend, "decoder", None) is not None:
            frontend.decoder = replace(frontend.decoder, dim=8, num_groups=1, num_layers=1)

    return config


def change(frontend: str, **settings: Any) -> Callable[[AnyConfig], AnyConfig]:
    """Change settings of a frontend."""
    return lambda config: replace(config, **{frontend: replace(getattr(config, frontend), **settings)})


def write_trained(
    folder: Path,
    family: str,
    arch: str,
    criterion: str | None = None,
    *,
    labels: LabelSet | None = CLASSES,
    task: dict[str, Any] | None = None,
    dataset: dict[str, Any] | None = None,
    change: Callable[[Any], AnyConfig] = lambda config: config,
    **settings: Any,
) -> Path:
    """Write a small model, with a head on top, no parameter of which is zero or one."""
    torch.manual_seed(0)
    model = create_model(change(shrink(FAMILIES[family].archs[arch]())))
    content = ModelDirectory(config=model.config, student={})
    if criterion is not None:
        section = CriterionSection(name=criterion, config=settings)
        section.structure(create_container())
        head = create(create_container(), Criterion, section)
        assert isinstance(head, SupervisedCriterion)
        attach_criterion(model, head, labels)
        (modality,) = model.config.frontends
        name = _TASKS.get(criterion, f"{modality.value}_classification")
        family = "sentences" if modality.value == "text" else f"{modality.value}_manifest"
        sections = {
            "task": {"name": name, "config": task or {}},
            "dataset": {"family": family, "config_overrides": dataset or {}},
            "criterion": {"name": criterion, "config": settings},
        }
        content.provenance = Provenance(sections, labels)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    content.student = drop_criterion(model.state_dict())
    content.head = None if model.criterion is None else model.criterion.state_dict()
    write_directory(folder, content)

    return folder


def read_trained(folder: Path, *arguments: Any, **settings: Any) -> Exportable:
    """The same, read for export."""
    return read_exportable(write_trained(folder, *arguments, **settings), create_container())
