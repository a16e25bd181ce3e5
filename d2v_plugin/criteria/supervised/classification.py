"""Classification of whole samples, and regression of a number: a linear layer on pooled features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

import torch
import torch.nn.functional as F
from fairseq2.utils.validation import ValidationResult
from torch import Tensor, nn
from typing_extensions import override

from d2v_plugin.core.batch import Batch
from d2v_plugin.core.contracts import LossOutput, StepInfo
from d2v_plugin.core.ranges import NonNegativeFloat, PositiveFloat, Share
from d2v_plugin.core.validation import report
from d2v_plugin.criteria.supervised.base import SupervisedConfig, SupervisedCriterion
from d2v_plugin.criteria.supervised.spec_augment import SpecAugmentConfig
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.models.base import EncoderModel, Features
from d2v_plugin.models.pooling import pool_tokens
from d2v_plugin.scoring import scores
from d2v_plugin.scoring.answers import Answer, Estimate, Ranking, Value
from d2v_plugin.scoring.predictions import Prediction, build_predictions

ScoreName = Literal[
    "accuracy", "top5_accuracy", "f1", "accuracy_and_f1", "matthews", "pearson", "spearman", "pearson_and_spearman"
]

_SCORES: Final[dict[str, Callable[[Any, Any], float]]] = {
    "accuracy": scores.accuracy,
    "f1": scores.f1,
    "accuracy_and_f1": scores.accuracy_and_f1,
    "matthews": scores.matthews,
    "pearson": scores.pearson,
    "spearman": scores.spearman,
    "pearson_and_spearman": scores.pearson_and_spearman,
}
_OF_NUMBERS: Final = {"pearson", "spearman", "pearson_and_spearman"}
_OF_TWO: Final = {"f1", "accuracy_and_f1"}
_NUM_BEST: Final = 5


@dataclass(kw_only=True)
class ClassificationConfig(SupervisedConfig):
    """Settings of ``classification``; the defaults are those of data2vec 2.0 on images."""

    pooling: Literal["mean", "cls"] = "mean"
    """``mean`` of the tokens that are no padding, or what stands at the class token (``<s>`` where the model has none)."""

    norm: bool = True
    """Layer norm of the pooled features."""

    norm_eps: PositiveFloat = 1e-6
    """Epsilon of that norm; BEiT's and MAE's by default. Models that Hugging Face's transformers fine-tuned have others."""

    hidden: bool = False
    """A layer with tanh before the last one, as RoBERTa has; both start as PyTorch's linear layers do, as there."""

    dropout: Share = 0.0
    """Dropout before every linear layer of the head."""

    init_scale: NonNegativeFloat = 1.0
    """Factor of the last layer's weights at the start; BEiT begins with small outputs, 0.001."""

    label_smoothing: Share = 0.0
    """This share of each target is spread evenly over all classes."""

    spec_augment: SpecAugmentConfig | None = None
    """Parts of spectrograms to hide in training, for models that see some; None = nothing."""

    scores: list[ScoreName] = field(default_factory=lambda: ["accuracy"])
    """Scores of the predictions on labelled splits; ``f1`` is that of the class with index 1. Where labels are numbers,
    ``pearson`` and ``spearman``."""

    @override
    def validate(self) -> ValidationResult:
        return report((not self.scores, "`scores` must name at least one score."), base=super().validate())


class ClassificationCriterion(SupervisedCriterion[EncoderModel]):
    """One class per sample; labels may be indices (N,), or shares of all classes (N, C) as mixing samples makes them.

    Without a label set labels are numbers, and the squared error is minimised (GLUE's STS-B). Subclasses may replace how
    tokens are pooled, what the loss is, and how logits become predictions.
    """

    label_kinds = ("classes", "numbers")

    def __init__(self, config: ClassificationConfig) -> None:
        super().__init__(config)
        self.config = config
        self.spec_augment = config.spec_augment
        self.score_names = config.scores

    @override
    def set_labels(self, labels: LabelSet | None) -> None:
        super().set_labels(labels)
        kind = "numbers" if labels is None else "classes"
        if wrong := [name for name in self.config.scores if (name in _OF_NUMBERS) == (labels is not None)]:
            raise ValueError(f"`scores` must not have {', '.join(wrong)}, because the labels are {kind}.")
        if labels is not None and len(labels) < 2:
            raise ValueError(f"The dataset has {len(labels)} class(es); a classifier needs two at least.")
        if labels is not None and _OF_TWO & set(self.config.scores) and len(labels) != 2:
            raise ValueError(f"`scores` must not have f1, because it is one of two classes, and there are {len(labels)}.")

    @override
    def build(self, model: EncoderModel) -> None:
        super().build(model)
        with torch.device(next(model.parameters()).device):
            self.head = Head(self.config, self.pooled_dim(model), 1 if self.labels is None else len(self.labels))

    def pooled_dim(self, model: EncoderModel) -> int:
        """The size of what :meth:`pool` returns for each sample."""
        return model.config.dim

    def pool(self, features: Features) -> Tensor:
        """One vector per sample, (N, D)."""
        if self.config.pooling == "mean":
            return pool_tokens(features.x, features.padding_mask)
        return features.x[:, 0] if features.extra_tokens is None else features.extra_tokens[:, -1]

    def compute_logits(self, model: EncoderModel, batch: Batch, step: StepInfo | None = None) -> Tensor:
        """(N, C) float32

        :param step: None = evaluation.
        """
        return self.apply_head(self.encode(model, batch, step))

    @override
    def apply_head(self, features: Features) -> Tensor:
        return self.head(self.pool(features)).float()  # type: ignore[no-any-return]

    def compute_losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(N,) the loss of each sample, without label smoothing in evaluation.

        :param labels: as in :attr:`d2v_plugin.core.batch.Batch.labels`.
        """
        if self.labels is None:
            return F.mse_loss(logits.squeeze(1), labels.to(logits.dtype), reduction="none")
        smoothing = self.config.label_smoothing if self.training else 0.0
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)

    @override
    def forward(self, model: EncoderModel, batch: Batch, step: StepInfo) -> LossOutput:
        losses = self.compute_losses(self.compute_logits(model, batch, step), expect_labels(batch))
        return LossOutput(losses.sum(), len(losses))

    @property
    @override
    def answer_kls(self) -> type[Answer]:
        return Estimate if self.labels is None else Ranking

    @override
    def answer(self, logits: Tensor, padding_mask: Tensor | None) -> Sequence[Answer]:
        hypotheses = self.decide(logits).tolist()
        if self.labels is None:
            return [Estimate(hypothesis=number) for number in hypotheses]
        rows = zip(hypotheses, logits.softmax(dim=1).tolist(), strict=True)
        return [Ranking(hypothesis=best, confidence=probs[best[0]], probabilities=probs) for best, probs in rows]

    @override
    def compare(self, answers: Sequence[Answer], logits: Tensor, padding_mask: Tensor | None, batch: Batch) -> list[Prediction]:
        labels = expect_labels(batch)
        return build_predictions(batch.ids, self.compute_losses(logits, labels), answers, labels.tolist())

    def decide(self, logits: Tensor) -> Tensor:
        """(N, K) the best classes, the best one first; or (N,) numbers."""
        if self.labels is None:
            return logits.squeeze(1)
        return logits.topk(min(_NUM_BEST, logits.size(1)), dim=1).indices

    @override
    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        references = [prediction.reference for prediction in predictions]
        if "" in references:  # a split without labels is predicted, but not scored
            return dict.fromkeys(self.config.scores, float("nan"))
        hypotheses = [_first(prediction.hypothesis) for prediction in predictions]
        found = {name: _SCORES[name](hypotheses, references) for name in self.config.scores if name in _SCORES}
        if "top5_accuracy" in self.config.scores:
            hits = [prediction.reference in cast(list[int], prediction.hypothesis) for prediction in predictions]
            found["top5_accuracy"] = sum(hits) / len(hits) if hits else float("nan")

        return {name: found[name] for name in self.config.scores}

    @override
    def format(self, value: Value) -> str:
        best = _first(value)
        if isinstance(best, str):
            return best
        return f"{best:.4g}" if self.labels is None or not isinstance(best, int) else self.labels.names[best]


class Head(nn.Module):
    """Map from pooled features to logits."""

    def __init__(self, config: ClassificationConfig, dim: int, num_outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps) if config.norm else None
        self.dropout = nn.Dropout(config.dropout)
        self.dense = nn.Linear(dim, dim) if config.hidden else None
        self.proj = nn.Linear(dim, num_outputs)
        if not config.hidden:
            nn.init.trunc_normal_(self.proj.weight, std=0.02)
            nn.init.zeros_(self.proj.bias)
        with torch.no_grad():
            self.proj.weight.mul_(config.init_scale)
            self.proj.bias.mul_(config.init_scale)

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, C)"""
        if self.norm is not None:
            x = self.norm(x)
        if self.dense is not None:
            x = self.dense(self.dropout(x)).tanh()
        return self.proj(self.dropout(x))  # type: ignore[no-any-return]


def expect_labels(batch: Batch) -> Tensor:
    """
    :raises RuntimeError: the batch has no labels; a mistake of the task.
    """
    if batch.labels is None:
        raise RuntimeError("The batch has no labels. Choose a task that reads them, such as `image_classification`.")
    return batch.labels


def _first(value: Value) -> str | int | float:
    return value[0] if isinstance(value, list) else value
