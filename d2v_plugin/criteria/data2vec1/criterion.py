"""data2vec 1.0: regression of contextualised representations of a masked sample at full length (arXiv 2202.03555, section 3).

Where fairseq's released code does something else than the paper:

- text: its teacher sees ``<pad>`` wherever nothing is masked (fairseq #4881); ours sees the whole text. Its loss covers
  ``<mask>`` tokens only, not random and kept ones (#4229); ours covers all chosen positions.
- images: its head has no effect and its masks cover 75 patches instead of 60 %; see :mod:`d2v_plugin.models.data2vec1.vision`.
- all: it steps the average once per micro-batch, so that gradient accumulation lowers the decay; ours once per update.
- padding is in its statistics of normalised targets (``original_padding`` of the model restores this), not in ours.
- its number of masked positions varies from step to step (speech) or from row to row (text, images); ours is fixed, at the
  mean of what it draws (see :mod:`d2v_plugin.masking.published`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from fairseq2.recipe.error import RecipeError
from torch import Tensor
from typing_extensions import Self, override

from d2v_plugin.core.batch import Batch
from d2v_plugin.core.contracts import LossOutput, Observation, StepInfo
from d2v_plugin.core.random import row_keys
from d2v_plugin.criteria.base import Criterion
from d2v_plugin.criteria.data2vec1.teacher import copy_teacher, run_teacher, teacher_pairs
from d2v_plugin.criteria.ema import EmaConfig, decay_at, update_average
from d2v_plugin.criteria.targets import TargetConfig, make_targets
from d2v_plugin.masking.base import MaskSampler, MaskSection
from d2v_plugin.masking.published import corrupt_tokens
from d2v_plugin.models.base import LocalFeatures
from d2v_plugin.models.data2vec1.base import Data2Vec1Model, TeacherScope
from d2v_plugin.models.data2vec1.blocks import BlockFeature
from d2v_plugin.models.data2vec1.text import Data2VecTextModel
from d2v_plugin.models.statistics import channel_deviations


@dataclass(kw_only=True)
class Data2Vec1MaskSection(MaskSection):
    """Selects the mask sampler: ``span`` for speech and text, ``beit_block`` for images."""

    name: str = "span"


@dataclass(kw_only=True)
class Data2Vec1Config:
    """Settings of ``data2vec1``."""

    masking: Data2Vec1MaskSection = field(default_factory=Data2Vec1MaskSection)
    """How the masks are drawn."""

    random_tokens: float = 0.0
    """Text: share of the masked positions that get a random token instead of ``<mask>`` (BERT: 0.1)."""

    kept_tokens: float = 0.0
    """Text: share of the masked positions that keep their token; they are predicted all the same (BERT: 0.1)."""

    ema: EmaConfig = field(default_factory=EmaConfig)
    """Decay of the teacher."""

    teacher_scope: TeacherScope = "layers"
    """Which modules are averaged; the teacher shares the others with the student."""

    targets: TargetConfig = field(default_factory=TargetConfig)
    """What is predicted; ``target_feature`` takes the place of its ``end_of_block``."""

    target_feature: BlockFeature = "ffn"
    """What of the teacher's blocks is averaged: ``ffn`` (the feed-forward output), ``ffn_residual`` (before the last norm),
    ``block`` (the output) or ``attention`` (the self-attention output, which fails to learn)."""

    target_context: float | None = None
    """Restrict the teacher's attention to a window around each position that spans this share of the sample (images: of
    the area); 1 reaches half the sample to each side, None = no restriction."""

    target_window: int | None = None
    """The same in positions to each side (images: in patches, to each side and up and down)."""

    full_precision_teacher: bool = False
    """Run the teacher in the precision of its weights, whatever that of the student: as the original did for images. It takes
    longer."""

    loss_beta: float = 0.0
    """Where smooth L1 turns from quadratic to linear; 0 = squared error."""

    loss_scale: float | None = None
    """Factor of the element-wise loss; None = 1 / sqrt(D)."""

    variance_weight: float = 0.0
    """Weight of a hinge on the standard deviation of each channel of the predictions (VICReg, equation 1)."""

    variance_margin: float = 1.0
    """Deviation below which the hinge acts."""

    covariance_weight: float = 0.0
    """Weight of the squared covariances of different channels of the predictions, over D (VICReg, equation 4)."""

    def __post_init__(self) -> None:
        if self.targets.end_of_block:
            raise ValueError("`targets.end_of_block` must be false; set `target_feature: block` instead.")
        if self.target_context is not None and self.target_window is not None:
            raise ValueError("`target_context` and `target_window` must not be given together.")
        if self.target_context is not None and not 0.0 < self.target_context <= 1.0:
            raise ValueError(f"`target_context` must be greater than 0 and at most 1, but is {self.target_context}.")
        if self.target_window is not None and self.target_window < 0:
            raise ValueError(f"`target_window` must be at least 0, but is {self.target_window}.")
        if min(self.random_tokens, self.kept_tokens) < 0.0 or self.random_tokens + self.kept_tokens > 1.0:
            raise ValueError(
                "`random_tokens` and `kept_tokens` must be at least 0 and at most 1 together, but are "
                f"{self.random_tokens} and {self.kept_tokens}."
            )


class Data2Vec1Criterion(Criterion[Data2Vec1Model]):
    """The objective of data2vec 1.0; owns the teacher."""

    teacher: Data2Vec1Model

    def __init__(self, config: Data2Vec1Config, sampler: MaskSampler) -> None:
        super().__init__()
        self.config = config
        self.sampler = sampler
        self.metric_names = (
            "regression_loss",
            *(["variance_loss"] if config.variance_weight > 0.0 else []),
            *(["covariance_loss"] if config.covariance_weight > 0.0 else []),
            "target_deviation",
            "prediction_deviation",
            "masked_fraction",
            "ema_decay",
        )

    @override
    def build(self, model: Data2Vec1Model) -> None:
        if not isinstance(model, Data2Vec1Model):
            raise RecipeError(f"`data2vec1` trains models of the family `data2vec1`, but `model` is a {type(model).__name__}.")
        if not 1 <= self.config.targets.num_layers <= len(model.blocks):
            raise RecipeError(
                f"`targets.num_layers` must be between 1 and the model's depth ({len(model.blocks)}), "
                f"but is {self.config.targets.num_layers}."
            )
        self.teacher = copy_teacher(model, self.config.teacher_scope)

    @override
    def train(self, mode: bool = True) -> Self:
        """The teacher does not drop out, whatever the mode."""
        super().train(mode)
        self.teacher.eval()

        return self

    @override
    def freeze_constants(self) -> None:
        self.teacher.requires_grad_(False)

    @override
    def after_step(self, model: Data2Vec1Model, step_nr: int) -> None:
        pairs = list(teacher_pairs(self.teacher, model))
        averages, currents = (average for average, _ in pairs), (current for _, current in pairs)
        update_average(averages, currents, decay_at(self.config.ema, step_nr))

    @override
    @torch.no_grad()
    def masks_of(self, model: Data2Vec1Model, batch: Batch, step: StepInfo) -> Tensor:
        local = model.extract_local(batch.inputs, batch.padding_mask)
        length, padding_mask = local.x.size(1) - model.num_extra_tokens, local.padding_mask
        keys = row_keys(step.seed, step.number, batch.ids, num_views=1)
        mask, _ = self._draw_masks(model, batch, keys, length, padding_mask)

        return mask.unsqueeze(1)

    @override
    @torch.no_grad()
    def teacher_layers(self, model: Data2Vec1Model, batch: Batch) -> list[Tensor]:
        local = model.extract_local(batch.inputs, batch.padding_mask)
        outputs = run_teacher(
            self.teacher, model, self.config.teacher_scope, inputs=batch.inputs, local=local.x, padding_mask=local.padding_mask
        )
        features: list[Tensor] = [getattr(output, self.config.target_feature) for output in outputs]

        return [feature[:, model.num_extra_tokens :] for feature in features]

    @override
    def forward(self, model: Data2Vec1Model, batch: Batch, step: StepInfo, *, mask: Tensor | None = None) -> LossOutput:
        """
        :param mask: (N, S), True = masked; None = drawn from (seed, step, sample id).
        """
        config, num_extra = self.config, model.num_extra_tokens

        # The student comes first: under autocast the weights that a pass without gradients has cast would have none.
        local = model.extract_local(batch.inputs, batch.padding_mask, modality=batch.modality)
        length, padding_mask = local.x.size(1) - num_extra, local.padding_mask
        keys = row_keys(step.seed, step.number, batch.ids, num_views=1)
        if mask is None:
            mask, num_targets = self._draw_masks(model, batch, keys, length, padding_mask)
        else:
            num_targets = int(mask.sum())
        x = self._encode_masked(model, local, mask, keys)

        # Where the rows mask equally many, this is the order of the rows and their positions.
        positions = mask.flatten().to(torch.uint8).argsort(descending=True, stable=True)[:num_targets]
        predictions = model.predict(x[:, num_extra:].flatten(0, 1).index_select(0, positions)).float()
        all_targets = self._make_targets(model, batch, local.x, padding_mask)
        targets = all_targets.flatten(0, 1).index_select(0, positions)

        scale = config.loss_scale if config.loss_scale is not None else model.config.dim**-0.5
        terms = {"regression_loss": self._distance(predictions, targets) * scale}
        # Statistics of the batch, not of a target: they count as often as there are targets, which the trainer divides by.
        if config.variance_weight > 0.0:
            terms["variance_loss"] = variance_loss(predictions, config.variance_margin) * config.variance_weight * num_targets
        if config.covariance_weight > 0.0:
            terms["covariance_loss"] = covariance_loss(predictions) * config.covariance_weight * num_targets
        loss = torch.stack(list(terms.values())).sum()

        metrics = {name: term.detach() / num_targets for name, term in terms.items()}
        metrics["target_deviation"] = channel_deviations(targets).mean()
        metrics["prediction_deviation"] = channel_deviations(predictions.detach()).mean()
        metrics["masked_fraction"] = torch.tensor(num_targets / mask.numel())
        metrics["ema_decay"] = torch.tensor(decay_at(config.ema, step.number))

        # Text has no local features, only ids.
        features = local.x.detach()[:, num_extra:] if local.x.is_floating_point() else None
        observation = Observation(features, all_targets, predictions.detach(), padding_mask)

        return LossOutput(loss, num_targets, metrics, observation)

    def _draw_masks(
        self, model: Data2Vec1Model, batch: Batch, keys: Tensor, length: int, padding_mask: Tensor | None
    ) -> tuple[Tensor, int]:
        """(N, S), and how many positions are masked in it."""
        min_length = length
        if padding_mask is not None:
            if batch.min_length is None:
                raise ValueError("`batch.min_length` must be given with `batch.padding_mask`.")
            min_length = model.output_length(batch.min_length)
        side = round(length**0.5)
        shape = (side, side) if _is_image(model) else (length,)
        mask = self.sampler(keys, shape, padding_mask=padding_mask, min_length=None if padding_mask is None else min_length)

        return mask, keys.size(0) * self.sampler.num_masked(min_length)

    def _encode_masked(self, model: Data2Vec1Model, local: LocalFeatures, mask: Tensor, keys: Tensor) -> Tensor:
        """The student's output, (N, X + S, D)."""
        config = self.config
        masked = model.mask_local(local, mask)
        if isinstance(model, Data2VecTextModel) and (config.random_tokens or config.kept_tokens):
            masked.x = corrupt_tokens(
                masked.x,
                local.x,
                mask,
                keys,
                words=(model.text.num_special_tokens, model.mask_idx),
                random_share=config.random_tokens,
                kept_share=config.kept_tokens,
            )
        x = masked.x
        for output in model.encode(masked):
            x = output.block

        return model.context_encoder.finish(x)

    @torch.no_grad()
    def _make_targets(self, model: Data2Vec1Model, batch: Batch, local: Tensor, padding_mask: Tensor | None) -> Tensor:
        """(N, S, D) fp32"""
        config = self.config
        first = len(model.blocks) - config.targets.num_layers
        context = self._restrict_context(model, local, padding_mask)

        def top_layers() -> Iterator[Tensor]:
            outputs = run_teacher(
                self.teacher,
                model,
                config.teacher_scope,
                inputs=batch.inputs,
                local=local.float() if config.full_precision_teacher and local.is_floating_point() else local,
                padding_mask=padding_mask,
                context=context,
            )
            for i, output in enumerate(outputs):
                if i >= first:
                    feature: Tensor = getattr(output, config.target_feature)
                    yield feature[:, model.num_extra_tokens :]

        with torch.autocast(local.device.type, enabled=False) if config.full_precision_teacher else nullcontext():
            return make_targets(config.targets, top_layers(), None if model.config.original_padding else padding_mask)

    def _restrict_context(self, model: Data2Vec1Model, local: Tensor, padding_mask: Tensor | None) -> Tensor | None:
        """(N or 1, X + S, X + S), True = may attend."""
        config = self.config
        if config.target_context is None and config.target_window is None:
            return None
        length = local.size(1) - model.num_extra_tokens
        lengths = torch.full((1,), length, device=local.device) if padding_mask is None else (~padding_mask).sum(dim=-1)
        is_image = _is_image(model)
        if config.target_window is not None:
            reach = torch.full_like(lengths, config.target_window)
        elif is_image:
            reach = (lengths * config.target_context).sqrt() / 2  # type: ignore[operator]
        else:
            reach = lengths * config.target_context / 2  # type: ignore[operator]

        return context_window(length, reach, is_image=is_image, num_extra_tokens=model.num_extra_tokens)

    def _distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Sum over all elements, in fp32."""
        if self.config.loss_beta == 0.0:
            return F.mse_loss(prediction, target, reduction="sum")

        return F.smooth_l1_loss(prediction, target, reduction="sum", beta=self.config.loss_beta)


def _is_image(model: Data2Vec1Model) -> bool:
    """Whether positions form a square grid."""
    return model.config.image is not None


def context_window(length: int, reach: Tensor, *, is_image: bool, num_extra_tokens: int) -> Tensor:
    """Which positions see each other.

    Extra tokens see everything, but only themselves are seen: otherwise they would carry the whole sample everywhere.

    :param length: S
    :param reach: (N or 1,) how far a position sees, to each side.
    :returns: (N or 1, X + S, X + S) bool
    """
    positions = torch.arange(length, device=reach.device)
    if is_image:
        side = round(length**0.5)
        down, across = positions // side, positions % side
        distance = torch.maximum((down[:, None] - down).abs(), (across[:, None] - across).abs())
    else:
        distance = (positions[:, None] - positions).abs()
    # (S, S), (N) -> (N, S, S) -> (N, X + S, X + S)
    window = F.pad(distance <= reach[:, None, None], (num_extra_tokens, 0, num_extra_tokens, 0))
    window[:, :num_extra_tokens] = True

    return window


def variance_loss(x: Tensor, margin: float) -> Tensor:
    """Mean over channels of how far the deviation of (P, D) is below the margin."""
    return F.relu(margin - channel_deviations(x)).mean()


def covariance_loss(x: Tensor) -> Tensor:
    """Sum of the squared covariances of different channels of (P, D), over D."""
    centred = x - x.mean(dim=0)
    covariance = centred.T @ centred / max(1, x.size(0) - 1)

    return (covariance.square().sum() - covariance.diagonal().square().sum()) / x.size(1)
