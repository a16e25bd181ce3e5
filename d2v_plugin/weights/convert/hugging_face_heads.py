"""Heads: those of Hugging Face's data2vec 1.0 classes <-> those of our criteria ``ctc`` and ``classification``, as plain data.

=========================================  ==========================================================================
``Data2VecAudioForCTC``                    ``ctc``; the blank, which is the padding there, comes first here
``Data2VecAudioForSequenceClassification``  ``classification``: mean; two linear layers, one after the other, are one
``Data2VecTextForSequenceClassification``  ``classification``: ``<s>``, a layer with tanh, a linear one
``Data2VecVisionForImageClassification``   ``classification``: mean and norm, or the CLS token; a linear layer
=========================================  ==========================================================================

Every other head is refused by name: of frames, of speakers, of words, of pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch

from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.data.transcripts import BLANK
from d2v_plugin.models.data2vec1.config import Data2Vec1ModelConfig
from d2v_plugin.weights.provenance import Provenance
from d2v_plugin.weights.state import State

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CTC: Final = "Data2VecAudioForCTC"
AUDIO_CLASSES: Final = "Data2VecAudioForSequenceClassification"
TEXT_CLASSES: Final = "Data2VecTextForSequenceClassification"
IMAGE_CLASSES: Final = "Data2VecVisionForImageClassification"
KNOWN: Final = (CTC, AUDIO_CLASSES, TEXT_CLASSES, IMAGE_CLASSES)

_TASKS: Final = {
    CTC: ("speech_recognition", "audio_manifest"),
    AUDIO_CLASSES: ("audio_classification", "audio_manifest"),
    TEXT_CLASSES: ("text_classification", "sentences"),
    IMAGE_CLASSES: ("image_classification", "image_manifest"),
}


@dataclass(frozen=True)
class ImportedHead:
    """A head in our terms."""

    weights: State
    """Of the criterion, under its names."""

    criterion: dict[str, Any]
    """Name and settings of the criterion."""

    labels: LabelSet | None
    """What it predicts; None = a number."""

    def describe(self, architecture: str, task_config: Mapping[str, Any]) -> Provenance:
        """What a model directory says of it.

        :param architecture: one of :data:`KNOWN`.
        :param task_config: how inputs are read.
        """
        task, family = _TASKS[architecture]
        sections = {
            "task": {"name": task, "config": dict(task_config)},
            "dataset": {"family": family, "config_overrides": {}},
            "criterion": self.criterion,
        }
        return Provenance(sections, self.labels)


def import_head(source: PretrainedConfig, architecture: str, weights: State, symbols: Sequence[str] | None) -> ImportedHead:
    """Read a head.

    :param architecture: one of :data:`KNOWN`.
    :param weights: of the whole model, under Hugging Face's names without the prefix of the encoder.
    :param symbols: what each output of a CTC model stands for, the blank among them.
    :raises CheckpointError: it computes something that no criterion of ours does.
    """
    if architecture == CTC:
        assert symbols is not None
        order = [symbols.index(BLANK), *(i for i, symbol in enumerate(symbols) if symbol != BLANK)]
        return ImportedHead(
            {f"head.{name}": weights[f"lm_head.{name}"][order] for name in ("weight", "bias")},
            {"name": "ctc", "config": {"dropout": source.final_dropout}},
            LabelSet([symbols[i] for i in order]),
        )

    labels = _read_labels(source, architecture)
    settings: dict[str, Any]
    if architecture == AUDIO_CLASSES:
        if source.use_weighted_layer_sum:
            raise CheckpointError("`use_weighted_layer_sum` must be False: no criterion here weighs the layers.")
        first, last = ("projector", "classifier")
        # Both are linear, and so is the mean between them.
        weight = weights[f"{last}.weight"].double() @ weights[f"{first}.weight"].double()
        bias = weights[f"{last}.weight"].double() @ weights[f"{first}.bias"].double() + weights[f"{last}.bias"].double()
        head = {"head.proj.weight": weight.float(), "head.proj.bias": bias.float()}
        settings = {"pooling": "mean", "norm": False, "hidden": False}
    elif architecture == TEXT_CLASSES:
        parts = {"dense": "classifier.dense", "proj": "classifier.out_proj"}
        head = _take(weights, parts)
        dropout = source.hidden_dropout_prob if source.classifier_dropout is None else source.classifier_dropout
        settings = {"pooling": "cls", "norm": False, "hidden": True, "dropout": dropout}
        if labels is None:
            settings["scores"] = ["pearson", "spearman"]
    else:
        is_mean = source.use_mean_pooling
        head = _take(weights, {"norm": "pooler.layernorm"} if is_mean else {}) | _take(weights, {"proj": "classifier"})
        settings = {"pooling": "mean" if is_mean else "cls", "norm": is_mean, "hidden": False}
        if is_mean:
            settings["norm_eps"] = source.layer_norm_eps

    return ImportedHead(head, {"name": "classification", "config": settings}, labels)


def _take(weights: State, parts: Mapping[str, str]) -> State:
    names = [(ours, theirs, kind) for ours, theirs in parts.items() for kind in ("weight", "bias")]
    return {f"head.{ours}.{kind}": weights[f"{theirs}.{kind}"] for ours, theirs, kind in names}


def _read_labels(source: PretrainedConfig, architecture: str) -> LabelSet | None:
    """:raises CheckpointError: there is no name for each class, or the head predicts no classes."""
    if source.num_labels == 1 and architecture == TEXT_CLASSES and source.problem_type in (None, "regression"):
        return None
    if source.problem_type not in (None, "single_label_classification"):
        raise CheckpointError(f"`problem_type` must be single_label_classification, but is {source.problem_type}.")
    names = {int(index): str(name) for index, name in (source.id2label or {}).items()}
    if source.num_labels < 2 or sorted(names) != list(range(source.num_labels)) or len(set(names.values())) < len(names):
        raise CheckpointError(f"`id2label` must name two classes at least, each by another name, but is {names}.")

    return LabelSet([names[index] for index in range(len(names))])


@dataclass(frozen=True)
class ExportedHead:
    """A head in Hugging Face's terms."""

    architecture: str
    """One of :data:`KNOWN`."""

    weights: State
    """Under Hugging Face's names, without the prefix of the encoder."""

    settings: dict[str, Any] = field(default_factory=dict)
    """Of the configuration."""


def export_head(config: Data2Vec1ModelConfig, provenance: Provenance, weights: State) -> ExportedHead:
    """Write a head.

    :param weights: of the criterion, under its names.
    :raises CheckpointError: no class of theirs computes it; says by which setting.
    """
    criterion = provenance.sections["criterion"]
    name, settings = criterion["name"], criterion.get("config") or {}
    labels = provenance.labels
    if name == "ctc":
        assert labels is not None
        head = {f"lm_head.{key.removeprefix('head.')}": tensor for key, tensor in weights.items()}
        return ExportedHead(
            CTC, head, {"vocab_size": len(labels), "pad_token_id": 0, "final_dropout": settings.get("dropout", 0.0)}
        )
    if name != "classification":
        raise CheckpointError(f"No class of Hugging Face's data2vec 1.0 has the head of the criterion `{name}`.")

    has = {part: f"head.{part}.weight" in weights for part in ("norm", "dense")}
    pooling = settings.get("pooling", "mean")
    parts = {key.removeprefix("head."): tensor for key, tensor in weights.items()}
    if labels is None:
        names: dict[str, Any] = {"num_labels": 1, "problem_type": "regression"}
    else:
        names = {"id2label": dict(enumerate(labels.names)), "label2id": labels.indices}
    if config.audio is not None:
        _require(AUDIO_CLASSES, pooling == "mean", f"`pooling` is {pooling}, where it has mean")
        _require(AUDIO_CLASSES, not has["norm"], "`norm` is true, which it does not have")
        _require(AUDIO_CLASSES, not has["dense"], "`hidden` is true, where it has no tanh")
        head = {"projector.weight": torch.eye(config.dim), "projector.bias": torch.zeros(config.dim)}
        head |= _rename(parts, {"proj": "classifier"})
        return ExportedHead(AUDIO_CLASSES, head, {"classifier_proj_size": config.dim, **names})
    if config.text is not None:
        _require(TEXT_CLASSES, pooling == "cls", f"`pooling` is {pooling}, where it has cls")
        _require(TEXT_CLASSES, not has["norm"], "`norm` is true, which it does not have")
        _require(TEXT_CLASSES, has["dense"], "`hidden` is false, where it has a layer with tanh")
        head = _rename(parts, {"dense": "classifier.dense", "proj": "classifier.out_proj"})
        return ExportedHead(TEXT_CLASSES, head, {"classifier_dropout": settings.get("dropout", 0.0), **names})

    assert config.image is not None
    _require(IMAGE_CLASSES, not has["dense"], "`hidden` is true, which it does not have")
    is_mean = pooling == "mean"
    _require(
        IMAGE_CLASSES,
        is_mean is has["norm"] is (not config.image.final_norm),
        f"`pooling` is {pooling}, `norm` {has['norm']} and the model's `image.final_norm` {config.image.final_norm}, where it "
        "has either the norm of the mean, or the CLS token after the final norm",
    )
    epsilon = settings.get("norm_eps", 1e-6)
    _require(
        IMAGE_CLASSES,
        not is_mean or epsilon == config.norm_eps,
        f"`norm_eps` is {epsilon}, where it has the model's, {config.norm_eps}",
    )
    return ExportedHead(IMAGE_CLASSES, _rename(parts, {"norm": "pooler.layernorm", "proj": "classifier"}), names)


def _require(architecture: str, is_same: bool, difference: str) -> None:
    if not is_same:
        raise CheckpointError(
            f"{architecture} cannot compute this head: {difference} (`criterion.config`). Export the encoder alone."
        )


def _rename(parts: State, names: Mapping[str, str]) -> State:
    """:param names: of modules, ours -> theirs."""
    return {f"{names[key.split('.')[0]]}.{key.split('.')[1]}": tensor for key, tensor in parts.items()}
