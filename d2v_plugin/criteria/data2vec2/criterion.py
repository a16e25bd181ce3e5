"""data2vec 2.0: regression of contextualised representations from masked views (arXiv 2212.07525, section 3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from fairseq2.recipe.error import RecipeError
from fairseq2.utils.validation import ValidationResult
from torch import Tensor, nn
from typing_extensions import override

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import LossOutput, Observation, StepInfo, Views
from d2v_plugin.core.log import log
from d2v_plugin.core.random import Stream, gaussian
from d2v_plugin.core.ranges import NonNegativeFloat, PositiveFloat, PositiveInt
from d2v_plugin.core.validation import Checked, ensure_valid, report
from d2v_plugin.criteria.data2vec2.teacher import Data2Vec2Teacher, TeacherScope
from d2v_plugin.criteria.distillation import DistillationCriterion
from d2v_plugin.criteria.ema import EmaConfig
from d2v_plugin.criteria.targets import TargetConfig, normalize_patches
from d2v_plugin.masking.base import MaskSampler, MaskSection
from d2v_plugin.masking.drawing import draw_views
from d2v_plugin.models.base import LocalFeatures
from d2v_plugin.models.data2vec2.frontends.base import Frontend, select_tokens
from d2v_plugin.models.data2vec2.model import Data2VecModel
from d2v_plugin.models.statistics import mean_valid


@dataclass(kw_only=True)
class ModalityOverrides(Checked):
    """Settings of one modality of a multi-modal model that differ from the others; None = the same."""

    masking: MaskSection | None = None
    """Selects its mask sampler."""

    teacher_scope: TeacherScope | None = None
    """Modules of its frontend that are averaged."""

    cls_weight: NonNegativeFloat | None = None
    """Weight of its CLS loss."""

    reconstruction_weight: NonNegativeFloat | None = None
    """Weight of its pixel reconstruction."""


@dataclass(kw_only=True)
class Data2Vec2Config(Checked):
    """Settings of ``data2vec2``."""

    num_views: PositiveInt = 8
    """M: masked views of each sample that share one pass of frontend and teacher."""

    masking: MaskSection = field(default_factory=MaskSection)
    """Selects the mask sampler."""

    noise_std: NonNegativeFloat = 0.01
    """Standard deviation of the Gaussian noise that the decoder gets at masked tokens."""

    ema: EmaConfig = field(default_factory=EmaConfig)
    """Decay of the teacher."""

    teacher_scope: TeacherScope = "all"
    """Modules that are averaged; the teacher shares the others with the student."""

    targets: TargetConfig = field(default_factory=TargetConfig)
    """Targets of the prediction."""

    loss_beta: NonNegativeFloat = 0.0
    """Distance at which smooth L1 turns from quadratic to linear; 0 = squared error."""

    loss_scale: PositiveFloat | None = None
    """Factor of the element-wise loss; None = 1 / sqrt(D)."""

    regression_weight: NonNegativeFloat = 1.0
    """Weight of the regression of masked tokens."""

    cls_weight: NonNegativeFloat = 0.0
    """Weight of the CLS loss: the last extra token regresses the sample's mean target.

    It counts per view. The original's ``cls_loss`` counts per GPU: multiply it by that GPU's batch x views
    (0.01 x 16 x 16 = 2.56 for base, 0.01 x 8 x 16 = 1.28 for large and huge).
    """

    cls_prediction: Literal["last", "mean", "tokens"] = "last"
    """What regresses the sample's mean target: the last extra token (data2vec 2.0, EAT), the mean of all extra tokens
    (emotion2vec's chunk embedding, which has 10), or that of the visible tokens (its global embedding, without extra ones)."""

    reconstruction_weight: NonNegativeFloat = 0.0
    """Weight of the regression of the normalised pixels of masked patches."""

    modalities: dict[str, ModalityOverrides] = field(default_factory=dict)
    """For models with several frontends: settings of ``audio``, ``image`` or ``text`` alone."""

    @override
    def validate(self) -> ValidationResult:
        known = [modality.value for modality in Modality]
        message = "`modalities` must have the keys audio, image or text, but has `{}`."

        return report(*((name not in known, message.format(name)) for name in self.modalities), base=super().validate())

    def of(self, modality: Modality) -> Data2Vec2Config:
        """The settings of one modality."""
        own = self.modalities.get(modality.value, ModalityOverrides())

        return replace(self, **{name: value for name, value in vars(own).items() if value is not None})


class Data2Vec2Criterion(DistillationCriterion[Data2VecModel]):
    """The objective of data2vec 2.0."""

    config: Data2Vec2Config
    compiled_methods = (*DistillationCriterion.compiled_methods, "draw_noise")

    def __init__(self, config: Data2Vec2Config, samplers: Mapping[Modality, MaskSampler]) -> None:
        """
        :param samplers: one mask sampler for each modality.
        :raises ValueError: the settings are impossible.
        """
        super().__init__()
        ensure_valid(config)
        self.config = config
        self.samplers = samplers
        self.settings = {modality: config.of(modality) for modality in Modality}
        self.name_metrics(
            regression_loss=config.regression_weight > 0.0,
            cls_loss=any(s.cls_weight > 0.0 for s in self.settings.values()),
            reconstruction_loss=any(s.reconstruction_weight > 0.0 for s in self.settings.values()),
        )

    @override
    def build(self, model: Data2VecModel) -> None:
        if not isinstance(model, Data2VecModel):
            raise RecipeError(f"This criterion trains models of the family `data2vec`, but `model` is a {type(model).__name__}.")
        super().build(model)
        for name, frontend in model.modality_encoders.items():
            modality = Modality[name]
            if frontend.decoder is None and model.shared_decoder is None:
                raise RecipeError(f"A decoder is needed: set `decoder` of `{modality.value}` or `shared_decoder` of the model.")
            settings = self.settings[modality]
            if max(settings.regression_weight, settings.cls_weight, settings.reconstruction_weight) <= 0.0:
                raise RecipeError("One of `regression_weight`, `cls_weight` and `reconstruction_weight` must be greater than 0.")
            if frontend.num_extra_tokens == 0 and settings.cls_weight > 0.0 and settings.cls_prediction != "tokens":
                raise RecipeError(f"The CLS loss needs a token: set `num_extra_tokens` of `{modality.value}` or `cls_weight: 0`.")
            if settings.cls_weight > 0.0 and self.config.targets.mean_is_zero:
                log.warning(
                    "The CLS loss regresses the mean of a sample's targets, which `criterion.config.targets` make zero for every "
                    "sample: set `layer_norm: true` there to learn something from it."
                )
        scopes = {name: self.settings[Modality[name]].teacher_scope for name in model.modality_encoders}
        self.teacher = Data2Vec2Teacher(model, scopes)

        image = model.config.image
        if image is not None and self.settings[Modality.IMAGE].reconstruction_weight > 0.0:
            device = next(model.parameters()).device
            self.recon_proj = nn.Linear(model.config.dim, image.values_per_patch, device=device)

    @override
    def forward(
        self, model: Data2VecModel, batch: Batch, step: StepInfo, *, mask: Tensor | None = None, noise: Tensor | None = None
    ) -> LossOutput:
        """
        :param mask: (N·M, S), True = masked, equally many in every row; None = drawn from (seed, step, sample id, view).
        :param noise: (N·M, S - K, D) the mask tokens in the order of their positions; None = drawn likewise.
        """
        config, frontend = self.settings[batch.modality], model.frontend(batch.modality)
        num_extra, scale = frontend.num_extra_tokens, self.scale(model)

        # The student comes first: under autocast the weights that a pass without gradients has cast would have none.
        local = model.extract_local(batch.inputs, batch.padding_mask, modality=batch.modality)
        views = self.draw_views(model, batch, local, step, mask)
        x = model.encode_views(local, views)
        decoded = self.predict(model, frontend, x[:, num_extra:], views, noise)
        predictions = [self.project_layers(prediction) for prediction in decoded]

        targets = self.compute_targets(model, batch, local)
        masked_targets = select_tokens(targets, views.masked)

        terms = {}
        # Without its loss a decoder has no gradient at all, so that the optimizer leaves it alone.
        if config.regression_weight > 0.0:
            terms["regression_loss"] = self._regress_tokens(predictions, masked_targets) * scale * config.regression_weight
        if config.cls_weight > 0.0:
            padding_mask = None if model.config.original_padding else local.padding_mask
            cls_loss = self._regress_samples(self._pool_views(x, num_extra, views), targets, padding_mask, views)
            terms["cls_loss"] = cls_loss * scale * config.cls_weight
        if config.reconstruction_weight > 0.0:
            reconstruction_loss = self._reconstruct_pixels(model, batch, decoded[0], views)
            terms["reconstruction_loss"] = reconstruction_loss * scale * config.reconstruction_weight

        observation = Observation(local.x.detach(), targets, predictions[0].detach(), local.padding_mask)
        share = views.masked.size(1) / targets.size(1)

        return self.sum_up(step, terms, predictions[0], masked_targets, share, observation)

    @override
    def draw_views(
        self, model: Data2VecModel, batch: Batch, local: LocalFeatures, step: StepInfo, mask: Tensor | None = None
    ) -> Views:
        return draw_views(
            self.samplers[batch.modality],
            step,
            batch,
            local.x.size(1),
            local.padding_mask,
            output_length=partial(model.output_length, modality=batch.modality),
            num_views=self.config.num_views,
            avoid_padding=not model.config.original_padding,
            grid=local.grid,
            mask=mask,
        )

    def predict(
        self, model: Data2VecModel, frontend: Frontend, x: Tensor, views: Views, noise: Tensor | None = None
    ) -> list[Tensor]:
        """Predict the masked tokens, (N·M, S - K, D), with each decoder of the modality; all see the same noise.

        :param x: (N·M, K, D) the encoder's output at the kept tokens.
        """
        if noise is None:
            noise = self.draw_noise(views.keys, views.masked.size(1), model.config.dim)
        decoders = (model.shared_decoder, frontend.decoder)

        return [model.decode(decoder, x, views, noise) for decoder in decoders if decoder is not None]

    def draw_noise(self, keys: Tensor, count: int, dim: int) -> Tensor:
        """The mask tokens of each view, (N·M, S - K, D)."""
        return gaussian(keys, count * dim, stream=Stream.NOISE, std=self.config.noise_std).view(-1, count, dim)

    @override
    def run_teacher(self, model: Data2VecModel, batch: Batch, local: LocalFeatures) -> Iterator[Tensor]:
        for output, tap in self.teacher(model, batch, local):
            yield output if self.config.targets.end_of_block else tap

    def _regress_tokens(self, predictions: list[Tensor], masked_targets: Tensor) -> Tensor:
        """The regression of masked tokens, summed over them and over the decoders."""
        return torch.stack([self.regress(prediction, masked_targets) for prediction in predictions]).sum()

    def _pool_views(self, x: Tensor, num_extra: int, views: Views) -> Tensor:
        """What stands for each view as a whole: (N·M, X + K, D) -> (N·M, D)."""
        if self.config.cls_prediction == "last":
            return x[:, num_extra - 1]
        if self.config.cls_prediction == "mean":
            return x[:, :num_extra].mean(dim=1)
        padding_mask = None if views.padding_mask is None else views.padding_mask.gather(1, views.kept)
        return mean_valid(x[:, num_extra:], padding_mask)

    def _regress_samples(self, x: Tensor, targets: Tensor, padding_mask: Tensor | None, views: Views) -> Tensor:
        """The regression of each sample's mean target, over layers too if they are kept apart.

        :param x: (N·M, D) what the encoder makes of each view as a whole.
        :param padding_mask: (N, S) what the mean leaves out.
        """
        if self.layer_proj is not None:
            # (N, S, K·D) -> (N, S, K, D) -> (N, S, D)
            targets = targets.unflatten(-1, (-1, x.size(-1))).mean(dim=-2)
        means = mean_valid(targets, padding_mask).repeat_interleave(views.num_views, dim=0)

        # Each view counts as often as it has targets: the trainer's normalisation then leaves a mean over the views.
        return self.distance(x, means) * views.masked.size(1)

    def _reconstruct_pixels(self, model: Data2VecModel, batch: Batch, prediction: Tensor, views: Views) -> Tensor:
        """The regression of the normalised pixels of masked patches."""
        assert model.config.image is not None
        pixels = select_tokens(normalize_patches(batch.inputs, model.config.image.patch_shape), views.masked)

        return self.distance(self.recon_proj(prediction), pixels)
