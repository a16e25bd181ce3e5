"""data2vec 1.0: regression of contextualised representations of a masked sample at full length (arXiv 2202.03555, section 3).

Where fairseq's released code does something else than the paper:

- text: its teacher sees ``<pad>`` wherever nothing is masked (fairseq #4881); ours sees the whole text. Its loss covers
  ``<mask>`` tokens only, not random and kept ones (#4229); ours covers all chosen positions.
- images: its head has no effect and its masks cover 75 patches instead of 60 %; see :mod:`d2v_plugin.models.data2vec1.vision`.
- all: it steps the average once per micro-batch, so that gradient accumulation lowers the decay; ours once per update.
- padding is in its statistics of normalised targets (``original_padding`` of the model restores this), not in ours.
- its number of masked positions varies from step to step (speech) or from row to row (text, images); ours is fixed, at the
  mean of what it draws (see :mod:`d2v_plugin.masking.spans_and_beit`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from fairseq2.recipe.error import RecipeError
from fairseq2.utils.validation import ValidationResult
from torch import Tensor
from typing_extensions import override

from d2v_plugin.core.batch import Batch
from d2v_plugin.core.contracts import LossOutput, Observation, StepInfo, Views
from d2v_plugin.core.ranges import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveShare, Probability
from d2v_plugin.core.validation import Checked, ensure_valid, report
from d2v_plugin.criteria.data2vec1.context import compute_reach, context_window
from d2v_plugin.criteria.data2vec1.teacher import Data2Vec1Teacher
from d2v_plugin.criteria.distillation import DistillationCriterion
from d2v_plugin.criteria.ema import EmaConfig
from d2v_plugin.criteria.targets import TargetConfig
from d2v_plugin.masking.base import MaskSampler
from d2v_plugin.masking.drawing import draw_views
from d2v_plugin.masking.spans_and_beit import SpanMaskSection
from d2v_plugin.masking.tokens import check_shares, corrupt_tokens
from d2v_plugin.models.base import LocalFeatures
from d2v_plugin.models.data2vec1.base import Data2Vec1Model, TeacherScope
from d2v_plugin.models.data2vec1.blocks import BlockFeature
from d2v_plugin.models.data2vec1.text import Data2VecTextModel
from d2v_plugin.models.statistics import channel_deviations


@dataclass(kw_only=True)
class Data2Vec1Config(Checked):
    """Settings of ``data2vec1``."""

    masking: SpanMaskSection = field(default_factory=SpanMaskSection)
    """Selects the mask sampler: ``span`` for speech and text, ``beit_block`` for images."""

    random_tokens: Probability = 0.0
    """Text: share of the masked positions that get a random token instead of ``<mask>`` (BERT: 0.1)."""

    kept_tokens: Probability = 0.0
    """Text: share of the masked positions that keep their token; they are predicted all the same (BERT: 0.1)."""

    ema: EmaConfig = field(default_factory=EmaConfig)
    """Decay of the teacher."""

    teacher_scope: TeacherScope = "layers"
    """Modules that are averaged; the teacher shares the others with the student."""

    targets: TargetConfig = field(default_factory=TargetConfig)
    """Targets of the prediction; ``target_feature`` takes the place of its ``end_of_block``."""

    target_feature: BlockFeature = "ffn"
    """Part of the teacher's blocks that is averaged: ``ffn`` (the feed-forward output), ``ffn_residual`` (before the last norm),
    ``block`` (the output) or ``attention`` (the self-attention output, which fails to learn)."""

    target_context: PositiveShare | None = None
    """Restrict the teacher's attention to a window around each position that spans this share of the sample (images: of
    the area); 1 reaches half the sample to each side, None = no restriction."""

    target_window: NonNegativeInt | None = None
    """The same in positions to each side (images: in patches, to each side and up and down)."""

    full_precision_teacher: bool = False
    """Run the teacher in the precision of its weights, whatever that of the student: as the original did for images. It takes
    longer."""

    loss_beta: NonNegativeFloat = 0.0
    """Distance at which smooth L1 turns from quadratic to linear; 0 = squared error."""

    loss_scale: PositiveFloat | None = None
    """Factor of the element-wise loss; None = 1 / sqrt(D)."""

    variance_weight: NonNegativeFloat = 0.0
    """Weight of a hinge on the standard deviation of each channel of the predictions (VICReg, equation 1)."""

    variance_margin: NonNegativeFloat = 1.0
    """Deviation below which the hinge acts."""

    covariance_weight: NonNegativeFloat = 0.0
    """Weight of the squared covariances of different channels of the predictions, over D (VICReg, equation 4)."""

    @override
    def validate(self) -> ValidationResult:
        return report(
            (self.targets.end_of_block, "`targets.end_of_block` must be false; set `target_feature: block` instead."),
            (
                self.target_context is not None and self.target_window is not None,
                "`target_context` and `target_window` must not be given together.",
            ),
            check_shares(self.random_tokens, self.kept_tokens),
            base=super().validate(),
        )


class Data2Vec1Criterion(DistillationCriterion[Data2Vec1Model]):
    """The objective of data2vec 1.0."""

    config: Data2Vec1Config

    def __init__(self, config: Data2Vec1Config, sampler: MaskSampler) -> None:
        """
        :raises ValueError: the settings are impossible.
        """
        super().__init__()
        ensure_valid(config)
        self.config = config
        self.sampler = sampler
        self.name_metrics(
            regression_loss=True,
            variance_loss=config.variance_weight > 0.0,
            covariance_loss=config.covariance_weight > 0.0,
        )

    @override
    def build(self, model: Data2Vec1Model) -> None:
        if not isinstance(model, Data2Vec1Model):
            raise RecipeError(f"`data2vec1` trains models of the family `data2vec1`, but `model` is a {type(model).__name__}.")
        super().build(model)
        ema = self.config.ema
        self.teacher = Data2Vec1Teacher(model, self.config.teacher_scope, freezes=max(ema.start, ema.end) >= 1.0)

    @override
    def forward(self, model: Data2Vec1Model, batch: Batch, step: StepInfo, *, mask: Tensor | None = None) -> LossOutput:
        """
        :param mask: (N, S), True = masked; None = drawn from (seed, step, sample id).
        """
        config, num_extra = self.config, model.num_extra_tokens

        # The student comes first: under autocast the weights that a pass without gradients has cast would have none.
        local = model.extract_local(batch.inputs, batch.padding_mask, modality=batch.modality)
        if mask is None:
            views = self.draw_views(model, batch, local, step)
            mask, num_targets = views.mask, views.masked.numel()
        else:
            num_targets = int(mask.sum())
        x = self.encode_masked(model, local, mask, step.keys(batch.ids))

        # Where the rows mask equally many, this is the order of the rows and their positions.
        positions = mask.flatten().to(torch.uint8).argsort(descending=True, stable=True)[:num_targets]
        masked = x[:, num_extra:].flatten(0, 1).index_select(0, positions)
        predictions = self.project_layers(model.predict(masked)).float()
        all_targets = self.compute_targets(model, batch, local)
        targets = all_targets.flatten(0, 1).index_select(0, positions)

        terms = {"regression_loss": self.regress(predictions, targets) * self.scale(model)}
        # Statistics of the batch, not of a target: they count as often as there are targets, which the trainer divides by.
        if config.variance_weight > 0.0:
            terms["variance_loss"] = variance_loss(predictions, config.variance_margin) * config.variance_weight * num_targets
        if config.covariance_weight > 0.0:
            terms["covariance_loss"] = covariance_loss(predictions) * config.covariance_weight * num_targets

        # Text has no local features, only ids.
        features = local.x.detach()[:, num_extra:] if local.x.is_floating_point() else None
        observation = Observation(features, all_targets, predictions.detach(), local.padding_mask)

        return self.sum_up(step, terms, predictions, targets, num_targets / mask.numel(), observation)

    @override
    def draw_views(
        self, model: Data2Vec1Model, batch: Batch, local: LocalFeatures, step: StepInfo, mask: Tensor | None = None
    ) -> Views:
        length, output_length = local.x.size(1) - model.num_extra_tokens, model.output_length

        return draw_views(
            self.sampler, step, batch, length, local.padding_mask, output_length=output_length, grid=local.grid, mask=mask
        )

    def encode_masked(self, model: Data2Vec1Model, local: LocalFeatures, mask: Tensor, keys: Tensor) -> Tensor:
        """Encode masked samples at full length: (N, X + S, D).

        :param mask: (N, S), True = masked.
        :param keys: (N,) what random tokens of text are drawn from.
        """
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

    @override
    def run_teacher(self, model: Data2Vec1Model, batch: Batch, local: LocalFeatures) -> Iterator[Tensor]:
        for output in self.teacher(model, batch, local, context=self._restrict_context(model, local)):
            yield getattr(output, self.config.target_feature)[:, model.num_extra_tokens :]

    @override
    @torch.no_grad()
    def compute_targets(self, model: Data2Vec1Model, batch: Batch, local: LocalFeatures) -> Tensor:
        if not self.config.full_precision_teacher:
            return super().compute_targets(model, batch, local)
        x = local.x.float() if local.x.is_floating_point() else local.x
        with torch.autocast(x.device.type, enabled=False):
            return super().compute_targets(model, batch, replace(local, x=x))

    def _restrict_context(self, model: Data2Vec1Model, local: LocalFeatures) -> Tensor | None:
        """The positions that each one sees, see :func:`context_window`; None = all."""
        share, window = self.config.target_context, self.config.target_window
        if share is None and window is None:
            return None
        shape = local.grid or (local.x.size(1) - model.num_extra_tokens,)
        if local.padding_mask is None:
            lengths = torch.full((1,), math.prod(shape), device=local.x.device)
        else:
            lengths = (~local.padding_mask).sum(dim=-1)
        reach = compute_reach(shape, lengths, share=share, window=window)

        return context_window(shape, reach, num_extra_tokens=model.num_extra_tokens)


def variance_loss(x: Tensor, margin: float) -> Tensor:
    """Mean over channels of how far the deviation of (P, D) is below the margin."""
    return torch.relu(margin - channel_deviations(x)).mean()


def covariance_loss(x: Tensor) -> Tensor:
    """Sum of the squared covariances of different channels of (P, D), over D."""
    centred = x - x.mean(dim=0)
    covariance = centred.T @ centred / max(1, x.size(0) - 1)

    return (covariance.square().sum() - covariance.diagonal().square().sum()) / x.size(1)
