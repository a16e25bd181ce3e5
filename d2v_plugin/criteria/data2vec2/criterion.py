"""data2vec 2.0: regression of contextualised representations from masked views (arXiv 2212.07525, section 3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from fairseq2.recipe.error import RecipeError
from torch import Tensor, nn
from typing_extensions import override

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import LossOutput, Observation, StepInfo
from d2v_plugin.core.random import Stream, gaussian, row_keys
from d2v_plugin.criteria.base import Criterion
from d2v_plugin.criteria.data2vec2.teacher import Teacher, TeacherScope
from d2v_plugin.criteria.ema import EmaConfig, decay_at
from d2v_plugin.criteria.pixels import normalise_patches
from d2v_plugin.criteria.targets import TargetConfig, make_targets
from d2v_plugin.masking.base import MaskSampler, MaskSection, mark_positions, split_mask
from d2v_plugin.models.base import LocalFeatures
from d2v_plugin.models.data2vec2.decoder import ConvDecoder
from d2v_plugin.models.data2vec2.frontends.base import Frontend, select_tokens
from d2v_plugin.models.data2vec2.model import Data2VecModel
from d2v_plugin.models.statistics import channel_deviations


@dataclass(kw_only=True)
class ModalityOverrides:
    """What one modality of a multi-modal model does differently; None = as the others."""

    masking: MaskSection | None = None
    """How its masks are drawn."""

    teacher_scope: TeacherScope | None = None
    """What of its frontend is averaged."""

    cls_weight: float | None = None
    """Weight of its CLS loss."""

    reconstruction_weight: float | None = None
    """Weight of its pixel reconstruction."""


@dataclass(kw_only=True)
class Data2Vec2Config:
    """Settings of ``data2vec2``."""

    num_views: int = 8
    """M: masked views of each sample that share one pass of frontend and teacher."""

    masking: MaskSection = field(default_factory=MaskSection)
    """How the masks are drawn."""

    noise_std: float = 0.01
    """Standard deviation of the Gaussian noise that the decoder gets at masked tokens."""

    ema: EmaConfig = field(default_factory=EmaConfig)
    """Decay of the teacher."""

    teacher_scope: TeacherScope = "all"
    """Which modules are averaged; the teacher shares the others with the student."""

    targets: TargetConfig = field(default_factory=TargetConfig)
    """What is predicted."""

    loss_beta: float = 0.0
    """Where smooth L1 turns from quadratic to linear; 0 = squared error."""

    loss_scale: float | None = None
    """Factor of the element-wise loss; None = 1 / sqrt(D)."""

    regression_weight: float = 1.0
    """Weight of the regression of masked tokens."""

    cls_weight: float = 0.0
    """Weight of the CLS loss: the last extra token regresses the sample's mean target.

    It counts per view. The original's ``cls_loss`` counts per GPU: multiply it by that GPU's batch x views
    (0.01 x 16 x 16 = 2.56 for base, 0.01 x 8 x 16 = 1.28 for large and huge).
    """

    reconstruction_weight: float = 0.0
    """Weight of the regression of the normalised pixels of masked patches."""

    modalities: dict[str, ModalityOverrides] = field(default_factory=dict)
    """For models with several frontends: what ``audio``, ``image`` or ``text`` does differently."""

    def __post_init__(self) -> None:
        if self.num_views < 1:
            raise ValueError(f"`num_views` must be at least 1, but is {self.num_views}.")
        for name in self.modalities:
            if name not in [modality.value for modality in Modality]:
                raise ValueError(f"`modalities` must have the keys audio, image or text, but has `{name}`.")


@dataclass(frozen=True)
class ModalitySettings:
    """The settings of one modality after overrides."""

    sampler: MaskSampler
    teacher_scope: TeacherScope
    cls_weight: float
    reconstruction_weight: float


class Data2Vec2Criterion(Criterion[Data2VecModel]):
    """The objective of data2vec 2.0; owns the teacher."""

    teacher: Teacher

    def __init__(self, config: Data2Vec2Config, samplers: dict[Modality, MaskSampler]) -> None:
        """
        :param samplers: one mask sampler for each modality.
        """
        super().__init__()
        self.config = config
        self.settings = {modality: self._resolve(modality, samplers[modality]) for modality in Modality}
        has_cls = any(s.cls_weight > 0.0 for s in self.settings.values())
        has_reconstruction = any(s.reconstruction_weight > 0.0 for s in self.settings.values())
        self.metric_names = (
            "regression_loss",
            *(["cls_loss"] if has_cls else []),
            *(["reconstruction_loss"] if has_reconstruction else []),
            "target_deviation",
            "prediction_deviation",
            "masked_fraction",
            "ema_decay",
        )

    def _resolve(self, modality: Modality, sampler: MaskSampler) -> ModalitySettings:
        config, own = self.config, self.config.modalities.get(modality.value, ModalityOverrides())

        return ModalitySettings(
            sampler,
            config.teacher_scope if own.teacher_scope is None else own.teacher_scope,
            config.cls_weight if own.cls_weight is None else own.cls_weight,
            config.reconstruction_weight if own.reconstruction_weight is None else own.reconstruction_weight,
        )

    @override
    def build(self, model: Data2VecModel) -> None:
        if not 1 <= self.config.targets.num_layers <= len(model.blocks):
            raise RecipeError(
                f"`targets.num_layers` must be between 1 and the model's depth ({len(model.blocks)}), "
                f"but is {self.config.targets.num_layers}."
            )
        for name, frontend in model.modality_encoders.items():
            modality = Modality[name]
            if frontend.decoder is None and model.shared_decoder is None:
                raise RecipeError(f"A decoder is needed: set `decoder` of `{modality.value}` or `shared_decoder` of the model.")
            if frontend.num_extra_tokens == 0 and self.settings[modality].cls_weight > 0.0:
                raise RecipeError(f"The CLS loss needs a token: set `num_extra_tokens` of `{modality.value}` or `cls_weight: 0`.")
        scope = {name: self.settings[Modality[name]].teacher_scope for name in model.modality_encoders}
        self.teacher = Teacher(model, scope)

        image = model.config.image
        if image is not None and self.settings[Modality.IMAGE].reconstruction_weight > 0.0:
            device = next(model.parameters()).device
            self.recon_proj = nn.Linear(model.config.dim, image.num_channels * image.patch_size**2, device=device)

    @override
    def freeze_constants(self) -> None:
        self.teacher.requires_grad_(False)

    @override
    def after_step(self, model: Data2VecModel, step_nr: int) -> None:
        self.teacher.follow(model, decay_at(self.config.ema, step_nr))

    @override
    @torch.no_grad()
    def masks_of(self, model: Data2VecModel, batch: Batch, step: StepInfo) -> Tensor:
        frontend = model.frontend(batch.modality)
        local = frontend.extract_local(batch.inputs, batch.padding_mask)
        _, masked = self._draw_masks(model, frontend, batch, local, step, None)

        return mark_positions(masked, local.x.size(1)).view(batch.num_examples, self.config.num_views, -1)

    @override
    @torch.no_grad()
    def teacher_layers(self, model: Data2VecModel, batch: Batch) -> list[Tensor]:
        local = model.frontend(batch.modality).extract_local(batch.inputs, batch.padding_mask)

        return [output if self.config.targets.end_of_block else tap for output, tap in self.teacher(model, batch, local)]

    @override
    def forward(
        self, model: Data2VecModel, batch: Batch, step: StepInfo, *, mask: Tensor | None = None, noise: Tensor | None = None
    ) -> LossOutput:
        """
        :param mask: (N·M, S), True = masked, equally many in every row; None = drawn from (seed, step, sample id, view).
        :param noise: (N·M, masked, D) the mask tokens in the order of their positions; None = drawn likewise.
        """
        config, settings = self.config, self.settings[batch.modality]
        frontend = model.frontend(batch.modality)

        # The student comes first: under autocast the weights that a pass without gradients has cast would have none.
        local = frontend.extract_local(batch.inputs, batch.padding_mask)
        kept, masked = self._draw_masks(model, frontend, batch, local, step, mask)
        x = model.encode_views(frontend, local, kept, masked)
        num_extra = frontend.num_extra_tokens
        if noise is None:
            keys = row_keys(step.seed, step.number, batch.ids, config.num_views)
            noise = self._draw_noise(keys, masked, model.config.dim)
        view_padding = None if local.padding_mask is None else local.padding_mask.repeat_interleave(config.num_views, dim=0)
        predictions = [
            model.decode(decoder, x[:, num_extra:], kept, masked, noise, view_padding) for decoder in _decoders(model, frontend)
        ]

        targets = self._make_targets(model, batch, local)
        masked_targets = select_tokens(targets, masked)

        num_targets = masked.numel()
        scale = config.loss_scale if config.loss_scale is not None else model.config.dim**-0.5
        distances = torch.stack([self._distance(prediction, masked_targets) for prediction in predictions])
        terms = {"regression_loss": distances.sum() * scale * config.regression_weight}
        if settings.cls_weight > 0.0:
            sample_means = _mean_tokens(targets, local.padding_mask).repeat_interleave(config.num_views, dim=0)
            cls_loss = self._distance(x[:, num_extra - 1], sample_means)
            # Each view counts as often as it has targets: the trainer's normalisation then leaves a mean over the views.
            terms["cls_loss"] = cls_loss * masked.size(1) * scale * settings.cls_weight
        if settings.reconstruction_weight > 0.0:
            assert model.config.image is not None
            pixels = select_tokens(normalise_patches(batch.inputs, model.config.image.patch_size), masked)
            reconstruction = self.recon_proj(predictions[0])
            terms["reconstruction_loss"] = self._distance(reconstruction, pixels) * scale * settings.reconstruction_weight
        loss = torch.stack(list(terms.values())).sum()

        # Modalities may differ in their terms, but the trainer wants the same metrics from every batch.
        metrics = {name: loss.new_zeros(()) for name in self.metric_names}
        metrics |= {name: term.detach() / num_targets for name, term in terms.items()}
        metrics["target_deviation"] = channel_deviations(masked_targets).mean()
        metrics["prediction_deviation"] = channel_deviations(predictions[0].detach()).mean()
        metrics["masked_fraction"] = torch.tensor(masked.size(1) / targets.size(1))
        metrics["ema_decay"] = torch.tensor(decay_at(config.ema, step.number))

        observation = Observation(local.x.detach(), targets, predictions[0].detach(), local.padding_mask)

        return LossOutput(loss, num_targets, metrics, observation)

    def _draw_masks(
        self, model: Data2VecModel, frontend: Frontend, batch: Batch, local: LocalFeatures, step: StepInfo, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Positions of the kept and of the masked tokens of every view, (N·M, K) and (N·M, S - K)."""
        if mask is not None:
            return split_mask(mask, int(mask[0].sum()))

        config, sampler = self.config, self.settings[batch.modality].sampler
        length = local.x.size(1)
        keys = row_keys(step.seed, step.number, batch.ids, config.num_views)
        padding_mask, min_length = None, None
        if local.padding_mask is not None and batch.min_length is not None and not model.config.original_padding:
            padding_mask = local.padding_mask.repeat_interleave(config.num_views, dim=0)
            min_length = frontend.output_length(batch.min_length)
        side = round(length**0.5)
        shape = (side, side) if batch.modality is Modality.IMAGE else (length,)
        mask = sampler(keys, shape, padding_mask=padding_mask, min_length=min_length)

        return split_mask(mask, sampler.num_masked(shape if min_length is None else min_length))

    def _draw_noise(self, keys: Tensor, masked: Tensor, dim: int) -> Tensor:
        """(N·M, S - K, D)"""
        noise = gaussian(keys, masked.size(1) * dim, stream=Stream.NOISE)

        return noise.view(*masked.shape, dim) * self.config.noise_std

    @torch.no_grad()
    def _make_targets(self, model: Data2VecModel, batch: Batch, local: LocalFeatures) -> Tensor:
        """(N, S, D) fp32; one teacher pass per sample serves all of its views."""
        config = self.config.targets
        first = len(model.blocks) - config.num_layers

        def top_layers() -> Iterator[Tensor]:
            for i, (output, tap) in enumerate(self.teacher(model, batch, local)):
                if i >= first:
                    yield output if config.end_of_block else tap

        padding_mask = None if model.config.original_padding else local.padding_mask

        return make_targets(config, top_layers(), padding_mask)

    def _distance(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Sum over all elements, in fp32."""
        prediction, target = prediction.float(), target.float()
        if self.config.loss_beta == 0.0:
            return F.mse_loss(prediction, target, reduction="sum")

        return F.smooth_l1_loss(prediction, target, reduction="sum", beta=self.config.loss_beta)


def _decoders(model: Data2VecModel, frontend: Frontend) -> list[ConvDecoder]:
    """All decoders of a modality, each with a regression loss of its own."""
    return [decoder for decoder in (model.shared_decoder, frontend.decoder) if decoder is not None]


def _mean_tokens(x: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Mean over the valid tokens: (N, S, D) -> (N, D)."""
    if padding_mask is None:
        return x.mean(dim=1)
    valid = (~padding_mask).unsqueeze(-1).to(x.dtype)

    return (x * valid).sum(dim=1) / valid.sum(dim=1)
