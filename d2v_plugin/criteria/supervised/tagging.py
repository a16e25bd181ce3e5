"""Tagging of recordings: any number of tags for each, as on AudioSet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import LossOutput, StepInfo
from d2v_plugin.core.random import Stream, uniform
from d2v_plugin.core.ranges import Share
from d2v_plugin.criteria.supervised.base import SupervisedConfig
from d2v_plugin.criteria.supervised.feature_masks import FeatureMaskConfig
from d2v_plugin.criteria.supervised.frames import FrameCriterion
from d2v_plugin.criteria.supervised.spec_augment import SpecAugmentConfig
from d2v_plugin.data.labels import LabelSet
from d2v_plugin.models.base import EncoderModel, Features
from d2v_plugin.scoring.answers import Answer, Tagging, Value
from d2v_plugin.scoring.predictions import Prediction, build_predictions
from d2v_plugin.scoring.scores import mean_average_precision

# The closest that a probability comes to 1: its complement must have a logarithm.
_MAX_LOG_PROB = -1e-7


@dataclass(kw_only=True)
class AudioTaggingConfig(SupervisedConfig):
    """Settings of ``audio_tagging``; the defaults are the original's on AudioSet."""

    pooling: Literal["linear_softmax", "mean", "cls"] = "linear_softmax"
    """Weights of the probabilities of a tag at all frames: themselves, so that a short sound counts, or all alike. ``cls`` asks
    the class token alone, behind a layer norm (EAT)."""

    dropout: Share = 0.0
    """Dropout before the output layer."""

    masking: FeatureMaskConfig | None = field(
        default_factory=lambda: FeatureMaskConfig(probability=0.6, length=5, channel_probability=0.0)
    )
    """Features to hide in training; None = nothing."""

    spec_augment: SpecAugmentConfig | None = None
    """Parts of spectrograms to hide in training, for models that see some; None = nothing."""

    mixup: Share | None = 0.5
    """Each recording is mixed with another one of its batch; its share is drawn between this and 1. None = no mixing."""


class AudioTaggingCriterion(FrameCriterion):
    """A linear layer gives the probability of each tag at each frame; pooled, they are compared with the tags by binary
    cross-entropy, summed over tags and recordings and counted by recordings. The original counts tags, which scales gradients."""

    label_kinds = ("tags",)

    score_names = ("mean_average_precision",)

    def __init__(self, config: AudioTaggingConfig) -> None:
        super().__init__(config, dropout=config.dropout, masking=config.masking)
        self.config = config
        self.framewise = config.pooling != "cls"
        self.spec_augment = config.spec_augment

    @override
    def set_labels(self, labels: LabelSet | None) -> None:
        if labels is None or not len(labels):
            raise ValueError("the dataset has no tags; set `task.name: audio_classification` and `task.config.tags: true`.")
        super().set_labels(labels)

    @override
    def build(self, model: EncoderModel) -> None:
        super().build(model)
        if self.config.pooling != "cls":
            # The original's starts as PyTorch's linear layers do.
            self.head.reset_parameters()
            return
        if not getattr(model.config.frontends[Modality.AUDIO], "num_extra_tokens", 0):
            raise ValueError(
                "the model has no class token for `pooling: cls`; choose another `pooling`, or set `num_extra_tokens`."
            )
        self.norm = nn.LayerNorm(model.config.dim, eps=1e-6, device=self.head.weight.device)
        nn.init.trunc_normal_(self.head.weight, std=0.02)

    @override
    def apply_head(self, features: Features) -> Tensor:
        if self.config.pooling == "cls":
            assert features.extra_tokens is not None
            # As if it were the only frame: (N, 1, D)
            features = Features(self.norm(features.extra_tokens[:, -1:]), None, [], None)
        return super().apply_head(features)

    def compute_log_probs(self, model: EncoderModel, batch: Batch, step: StepInfo | None = None) -> Tensor:
        """(N, C) the logarithm of each tag's probability, float32, less than 0."""
        return self.pool(*self.compute_logits(model, batch, step))

    @override
    def forward(self, model: EncoderModel, batch: Batch, step: StepInfo) -> LossOutput:
        if self.config.mixup is not None:
            batch = mix_recordings(batch, step, self.config.mixup)
        losses = _compute_losses(self.compute_log_probs(model, batch, step), _expect_tags(batch))
        return LossOutput(losses.sum(), batch.num_examples)

    @property
    @override
    def answer_kls(self) -> type[Answer]:
        return Tagging

    @override
    def answer(self, logits: Tensor, padding_mask: Tensor | None) -> Sequence[Tagging]:
        rows = self.pool(logits, padding_mask).exp().tolist()
        return [Tagging(hypothesis=probs, confidence=max(probs)) for probs in rows]

    @override
    def compare(self, answers: Sequence[Answer], logits: Tensor, padding_mask: Tensor | None, batch: Batch) -> list[Prediction]:
        tags = _expect_tags(batch)
        return build_predictions(batch.ids, _compute_losses(self.pool(logits, padding_mask), tags), answers, tags.tolist())

    def pool(self, logits: Tensor, padding_mask: Tensor | None) -> Tensor:
        """From the tags' logits at all frames to log-probabilities: (N, S, C) -> (N, C)."""
        if self.config.pooling == "linear_softmax":
            return pool_linear_softmax(logits, padding_mask)
        return pool_mean(logits, padding_mask if self.framewise else None)

    @override
    def score(self, predictions: Sequence[Prediction]) -> dict[str, float]:
        probs, tags = ([cast(Any, getattr(row, side)) for row in predictions] for side in ("hypothesis", "reference"))
        return {"mean_average_precision": mean_average_precision(probs, tags)}

    @override
    def format(self, value: Value) -> str:
        """The tags that are at least as likely as not, or that apply."""
        assert self.labels is not None and isinstance(value, list)
        return ";".join(name for name, share in zip(self.labels.names, value, strict=True) if share >= 0.5)


def pool_linear_softmax(logits: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Mean of the probabilities, weighted by themselves: Σp² / Σp, as logarithm (Wang et al., arXiv 1810.09050).

    :param logits: (N, S, C)
    :param padding_mask: (N, S), True = padding.
    :returns: (N, C), less than 0.
    """
    log_probs = _mask_frames(F.logsigmoid(logits), padding_mask)
    pooled = (2 * log_probs).logsumexp(dim=1) - log_probs.logsumexp(dim=1)
    return pooled.clamp(max=_MAX_LOG_PROB)


def pool_mean(logits: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Mean of the probabilities, as logarithm; shapes as in :func:`pool_linear_softmax`."""
    log_count = math.log(logits.size(1)) if padding_mask is None else (~padding_mask).sum(dim=1, keepdim=True).log()
    log_probs = _mask_frames(F.logsigmoid(logits), padding_mask)
    return (log_probs.logsumexp(dim=1) - log_count).clamp(max=_MAX_LOG_PROB)


def mix_recordings(batch: Batch, step: StepInfo, least: float) -> Batch:
    """Add to each recording another one of its batch, so that the loudness stays; tags are mixed by the same shares.

    :param batch: with tags (N, C).
    :param least: the smallest share of the recording itself.
    """
    if batch.num_examples < 2:
        return batch
    keys = step.keys(batch.ids)
    order = uniform(keys, 1, stream=Stream.PARTNERS).squeeze(1).argsort(stable=True)
    partners = torch.empty_like(order).scatter_(0, order, order.roll(1))
    # (N, 1)
    shares = least + (1.0 - least) * uniform(keys, 1, stream=Stream.SHARES)

    inputs = shares * batch.inputs + (1.0 - shares) * batch.inputs[partners]
    inputs = inputs / (shares**2 + (1.0 - shares) ** 2).sqrt()
    tags = _expect_tags(batch)
    padding_mask = None if batch.padding_mask is None else batch.padding_mask & batch.padding_mask[partners]

    return replace(batch, inputs=inputs, padding_mask=padding_mask, labels=shares * tags + (1.0 - shares) * tags[partners])


def _mask_frames(log_probs: Tensor, padding_mask: Tensor | None) -> Tensor:
    return log_probs if padding_mask is None else log_probs.masked_fill(padding_mask.unsqueeze(-1), -torch.inf)


def _compute_losses(log_probs: Tensor, tags: Tensor) -> Tensor:
    """(N,) binary cross-entropy, summed over the tags."""
    log_complements = (-log_probs.expm1()).log()
    return -(tags * log_probs + (1.0 - tags) * log_complements).sum(dim=1)


def _expect_tags(batch: Batch) -> Tensor:
    if batch.labels is None or batch.labels.dim() != 2:
        raise RuntimeError("The batch has no tags. Set `task.name: audio_classification` and `task.config.tags: true`.")
    return batch.labels
