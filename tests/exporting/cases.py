"""Small models of every kind, with random weights, and what they compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fairseq2.runtime.dependency import DependencyContainer

from d2v_plugin.criteria.base import Criterion, CriterionSection
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.evaluation.checkpoint import attach_criterion
from d2v_plugin.exporting.comparison import compute_outputs, draw_batch
from d2v_plugin.exporting.exportable import Exportable, create_section
from d2v_plugin.exporting.hugging_face.export import name_inputs
from d2v_plugin.exporting.hugging_face.settings import describe_head
from d2v_plugin.models.base import drop_criterion
from d2v_plugin.models.data2vec2.archs import ARCHS
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.models.data2vec2.factory import create_model
from d2v_plugin.models.data2vec2.frontend_config import AlibiConfig
from d2v_plugin.weights.directory import ModelDirectory, write_directory
from d2v_plugin.weights.provenance import Provenance

BOOKS = Path(__file__).parents[2] / "manifests" / "books"
LETTERS = ["<blank>", "|", "a", "b", "c"]
ANIMALS = ["cat", "dog", "owl"]


@dataclass
class Case:
    """A model and its head."""

    arch: str
    criterion: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    labels: Sequence[str] | None = None
    task: dict[str, Any] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    frontend: dict[str, Any] = field(default_factory=dict)
    files: Sequence[Path] = ()

    def build_config(self) -> Data2VecConfig:
        config = deepcopy(ARCHS[self.arch]())
        for name, value in self.model.items():
            setattr(config, name, value)
        for section in config.frontends.values():
            for name, value in self.frontend.items():
                setattr(section, name, value)

        return config


SENTENCES = {"family": "sentences", "config_overrides": {"vocabulary": str(BOOKS), "path": str(BOOKS)}}
TEXT: dict[str, Any] = {
    "task": {"name": "text_classification", "config": {"max_length": 128}},
    "dataset": SENTENCES,
    "files": [BOOKS / "sentencepiece.model", BOOKS / "vocabulary.json"],
}
SOUND: dict[str, Any] = {"task": {"name": "audio_classification"}, "dataset": {"family": "audio_manifest"}}
DROPS = {"dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1, "post_mlp_dropout": 0.1, "drop_path": (0.1, 0.3)}

CASES: dict[str, Case] = {
    "ctc": Case(
        *("audio_tiny", "ctc", {"masking": None}, LETTERS),
        task={"name": "speech_recognition"},
        dataset={"family": "audio_manifest"},
    ),
    "tags": Case("audio_tiny", "audio_tagging", {}, ANIMALS, **SOUND),
    "frame_mean": Case(
        *("audio_tiny", "audio_tagging", {"pooling": "mean"}, ANIMALS),
        **SOUND,
        frontend={
            **{"prenet_depth": 2, "num_extra_tokens": 2, "position_pre_norm": True, "position_width": 20},
            **{"alibi": AlibiConfig(per_layer=True, initial_scale=0.7), "conv_norm": "group_norm", "local_grad_scale": 0.5},
        },
        model={"norm_first": True},
    ),
    "recordings": Case(
        *("audio_tiny", "classification", {"norm": False}, ANIMALS),
        **SOUND,
        frontend={
            "conv_bias": True,
            "position_norm": False,
            "alibi": AlibiConfig(num_heads=2, learned_scale=False),
            "prenet_dropout": 0.1,
            "local_grad_scale": 0.0,
        },
        model={"original_padding": True, **DROPS},
    ),
    "pictures": Case(
        *("image_tiny", "classification", {"pooling": "cls"}, ANIMALS),
        task={"name": "image_classification", "config": {"image": {"size": 32, "eval_resize": 1.25, "mean": [0.5, 0.4, 0.3]}}},
        dataset={"family": "image_manifest"},
        frontend={"alibi": AlibiConfig(distance="euclidean", per_head=False)},
        model={"layer_drop": 0.2, **DROPS},
    ),
    "pictures_mean": Case(
        *("image_tiny", "classification", {"dropout": 0.2}, ANIMALS),
        task={"name": "image_classification", "config": {"image": {"size": 32, "eval_resize": 1.0}}},
        dataset={"family": "image_manifest"},
        frontend={"embed_dim": 48, "fixed_positions": False, "alibi": AlibiConfig(), "num_extra_tokens": 0, "prenet_depth": 0},
        model={"norm_affine": False},
    ),
    "sentences": Case("text_tiny", "classification", {"pooling": "cls", "norm": False, "hidden": True}, ANIMALS, **TEXT),
    "numbers": Case(
        *("text_tiny", "classification", {"scores": ["pearson"]}),
        **TEXT,
        frontend={
            "prenet_depth": 1,
            "num_extra_tokens": 1,
            "alibi": AlibiConfig(distance="sequential", initial_scale=-0.1, per_layer=True),
        },
    ),
    "encoder": Case("image_tiny"),
    "multimodal": Case("multimodal_tiny"),
}


def write_case(case: Case, folder: Path, container: DependencyContainer, *, changes: Mapping[str, Any] | None = None) -> None:
    """Write a model with its head, as a directory of ours."""
    torch.manual_seed(0)
    model = create_model(case.build_config())
    criterion = None
    if case.criterion is not None:
        section = {"name": case.criterion, "config": case.settings}
        criterion = create_section(container, Criterion, CriterionSection, section)
        assert criterion is not None
        labels = None if case.labels is None else LabelSet(case.labels)
        attach_criterion(model, criterion, labels)
        provenance = Provenance({"task": case.task, "dataset": case.dataset, "criterion": section}, labels)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    content = ModelDirectory(config=model.config, student=drop_criterion(model.state_dict()))
    if criterion is not None:
        content.head, content.provenance, content.files = criterion.state_dict(), provenance, case.files
    write_directory(folder, content)


def describe_models(exportable: Exportable) -> dict[str, Any]:
    """What our own model computes, for ``elsewhere.py``: one entry for each modality."""
    cases = {}
    name, head = describe_head(exportable)
    auto = name.replace("Data2Vec2", "AutoModel").replace("AutoModelModel", "AutoModel")
    for modality in exportable.model.config.frontends:
        batch = draw_batch(exportable.model, modality)
        expected = compute_outputs(exportable, batch)
        cases[modality.value] = {
            "auto": auto,
            "inputs": name_inputs(batch),
            "blocks": expected.blocks,
            "head": expected.head,
            "valid": expected.valid,
            "labels": make_labels(head, len(batch.inputs), is_ctc=name == "Data2Vec2ForCTC"),
        }

    return cases


def make_labels(head: Mapping[str, Any], count: int, *, is_ctc: bool) -> torch.Tensor | None:
    if is_ctc:
        return torch.tensor([[2, -100]] * count)
    match head.get("problem_type"):
        case None:
            return None
        case "regression":
            return torch.arange(count).float()
        case "multi_label_classification":
            return torch.eye(len(ANIMALS))[:count]
        case _:
            return torch.arange(count) % len(ANIMALS)
