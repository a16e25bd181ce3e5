"""Heads of fairseq's fine-tuned models compute the same here, and say what they predict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.errors import CheckpointError
from d2v_plugin.criteria.supervised.classification import ClassificationConfig, ClassificationCriterion
from d2v_plugin.criteria.supervised.ctc import CtcConfig, CtcCriterion
from d2v_plugin.evaluation.checkpoint import load_trained
from d2v_plugin.models.base import EncoderModel
from d2v_plugin.weights.convert.fairseq import convert_fairseq
from d2v_plugin.weights.directory import ModelDirectory, write_directory

FairseqCheckpoint = Callable[..., Path]
Change = Callable[[dict[str, Any]], None]

CPU = torch.device("cpu")
DICTIONARY = "| 9\nA 5\nB 3\n"
WAVEFORMS = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape) + shape[0]))


def tune(
    name: str, config_key: str, prefix: str, head: dict[str, Tensor], *, task: dict[str, Any] | None = None, **settings: Any
) -> Change:
    """What fairseq's fine-tuned models make of a pre-trained one."""

    def change(content: dict[str, Any]) -> None:
        pretrained = {key: t for key, t in content["model"].items() if key != "_ema" and ".decoder." not in key}
        content["model"] = {prefix + key: tensor for key, tensor in pretrained.items()} | head
        content["cfg"] = {"model": {"_name": name, config_key: content["cfg"], **settings}, "task": task or {}}

    return change


def tune_ctc(**settings: Any) -> Change:
    head = {"w2v_encoder.proj.weight": draw(7, 36), "w2v_encoder.proj.bias": draw(7)}
    return tune("wav2vec_ctc", "w2v_args", "w2v_encoder.w2v_model.", head, **settings)


def tune_images(classes: int = 10, **settings: Any) -> Change:
    head = {"head.weight": draw(classes, 32), "head.bias": draw(classes)}
    if settings.pop("norm", True):
        head |= {"fc_norm.weight": draw(32), "fc_norm.bias": draw(32)}
    return tune("mae_image_classification", "pretrained_model_args", "model.", head, **settings)


def tune_text(outputs: int = 3, **settings: Any) -> Change:
    name = "classification_heads.sentence_classification_head."
    head = {f"{name}dense.weight": draw(32, 32), f"{name}dense.bias": draw(32)}
    head |= {f"{name}out_proj.weight": draw(outputs, 32), f"{name}out_proj.bias": draw(outputs)}
    return tune("data2vec_text_classification", "pretrained_model_args", "model.", head, **settings)


@pytest.fixture
def dictionary(tmp_path: Path) -> Path:
    path = tmp_path / "dict.ltr.txt"
    path.write_text(DICTIONARY)
    return path


def criterion_of(directory: ModelDirectory) -> dict[str, Any]:
    assert directory.provenance is not None
    section: dict[str, Any] = directory.provenance.sections["criterion"]
    return section


def reload(directory: ModelDirectory, folder: Path, criterion: Any) -> EncoderModel:
    assert directory.provenance is not None
    write_directory(folder, directory)
    return load_trained(folder, criterion, labels=directory.provenance.labels, device=CPU)


def left_out(directory: ModelDirectory) -> list[str]:
    return [f"{part}: {remark}" for part, _, remark in directory.info["source"]["transfer"]["left out"]]


@torch.no_grad()
def test_ctc(fairseq_checkpoint: FairseqCheckpoint, dictionary: Path, tmp_path: Path) -> None:
    settings = {"apply_mask": True, "mask_prob": 0.65, "mask_length": 5, "mask_channel_prob": 0.4, "zero_mask": True}
    change = tune_ctc(**settings, final_dropout=0.1, freeze_finetune_updates=100, blank_weight=2.0, normalize=True)
    directory = convert_fairseq(fairseq_checkpoint("audio", change), labels=dictionary)

    assert directory.provenance is not None and directory.provenance.labels is not None
    assert directory.provenance.labels.names == ["<blank>", "<pad>", "</s>", "<unk>", "|", "A", "B"]
    assert criterion_of(directory)["config"] == {
        "dropout": 0.1,
        "masking": {"probability": 0.65, "length": 5, "channel_probability": 0.4, "channel_length": 10, "noise_std": 0.0},
        "freeze_updates": 100,
    }
    criterion = CtcCriterion(CtcConfig())
    model = reload(directory, tmp_path / "out", criterion)
    log_probs, _ = criterion.compute_log_probs(model, Batch(modality=Modality.AUDIO, ids=torch.arange(2), inputs=WAVEFORMS))
    logits = model.extract_features(WAVEFORMS).x @ draw(7, 36).T + draw(7)
    logits[..., 0] += 2.0
    torch.testing.assert_close(log_probs, logits.log_softmax(-1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("mode", ["MEAN_POOLING", "CLS_TOKEN"])
@torch.no_grad()
def test_images(mode: str, norm: bool, fairseq_checkpoint: FairseqCheckpoint, tmp_path: Path) -> None:
    directory = convert_fairseq(fairseq_checkpoint("image", tune_images(prediction_mode=mode, norm=norm, label_smoothing=0.1)))
    section = criterion_of(directory)

    assert section["config"] == {
        "pooling": "mean" if mode == "MEAN_POOLING" else "cls",
        "norm": norm,
        "label_smoothing": 0.1,
        "scores": ["accuracy", "top5_accuracy"],
    }
    criterion = ClassificationCriterion(ClassificationConfig(**section["config"]))
    model = reload(directory, tmp_path / "out", criterion)
    images = torch.randn(2, 3, 32, 32)
    features = model.extract_features(images)
    assert features.extra_tokens is not None
    pooled = features.x.mean(dim=1) if mode == "MEAN_POOLING" else features.extra_tokens[:, 0]
    if norm:
        pooled = F.layer_norm(pooled, (32,), draw(32), draw(32), 1e-6)
    logits = criterion.compute_logits(model, Batch(modality=Modality.IMAGE, ids=torch.arange(2), inputs=images))
    torch.testing.assert_close(logits, pooled @ draw(10, 32).T + draw(10), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_text(fairseq_checkpoint: FairseqCheckpoint, tmp_path: Path) -> None:
    directory = convert_fairseq(fairseq_checkpoint("text", tune_text(pooler_dropout=0.2)))
    section = criterion_of(directory)
    criterion = ClassificationCriterion(ClassificationConfig(**section["config"]))
    model = reload(directory, tmp_path / "out", criterion)

    tokens = torch.randint(4, 40, (2, 9))
    hidden = torch.tanh(model.extract_features(tokens).x[:, 0] @ draw(32, 32).T + draw(32))
    logits = criterion.compute_logits(model, Batch(modality=Modality.TEXT, ids=torch.arange(2), inputs=tokens))
    torch.testing.assert_close(logits, hidden @ draw(3, 32).T + draw(3), atol=1e-5, rtol=1e-5)
    assert section["config"]["dropout"] == 0.2


def test_text_that_predicts_a_number_has_no_labels(fairseq_checkpoint: FairseqCheckpoint, tmp_path: Path) -> None:
    directory = convert_fairseq(fairseq_checkpoint("text", tune_text(1)))

    assert directory.provenance is not None and directory.provenance.labels is None
    reload(directory, tmp_path / "out", ClassificationCriterion(ClassificationConfig(**criterion_of(directory)["config"])))


@pytest.mark.parametrize(
    ("modality", "change", "reason"),
    [
        ("audio", tune_ctc(), "proj: nothing says what its outputs are: name the dictionary, `--labels dict.ltr.txt`"),
        ("audio", tune_ctc(blank_weight=1.0, blank_mode="set"), "`blank_mode` sets the blank to a constant"),
        ("image", tune_images(prediction_mode="LIN_SOFTMAX"), "`prediction_mode: LIN_SOFTMAX`"),
        ("text", tune_text(pooler_activation_fn="relu"), "`pooler_activation_fn: relu`"),
    ],
)
def test_a_head_that_has_no_counterpart_is_left_out_with_the_reason(
    modality: str, change: Change, reason: str, fairseq_checkpoint: FairseqCheckpoint
) -> None:
    directory = convert_fairseq(fairseq_checkpoint(modality, change))

    assert directory.head is None and directory.provenance is None
    assert any(reason in line for line in left_out(directory))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("| 9\n", "names 5 outputs, but the head of .* has 7"),
        ("| 9\nA 5\nA 3\n", "names some outputs twice"),
        (None, "cannot be read"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    content: str | None, message: str, fairseq_checkpoint: FairseqCheckpoint, tmp_path: Path
) -> None:
    labels = tmp_path / "dict.ltr.txt"
    if content is not None:
        labels.write_text(content)

    with pytest.raises(CheckpointError, match=message):
        convert_fairseq(fairseq_checkpoint("audio", tune_ctc()), labels=labels)


def test_labels_of_a_model_without_head_are_refused(fairseq_checkpoint: FairseqCheckpoint, dictionary: Path) -> None:
    with pytest.raises(CheckpointError, match="is not fine-tuned, so that --labels has nothing to name"):
        convert_fairseq(fairseq_checkpoint("audio"), labels=dictionary)
