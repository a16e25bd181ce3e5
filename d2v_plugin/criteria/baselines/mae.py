"""Masked autoencoding: an asymmetric Transformer reconstructs the pixels of masked patches (MAE, arXiv 2111.06377)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from fairseq2.utils.validation import ValidationResult
from torch import Tensor, nn
from typing_extensions import override

from d2v_plugin.core.batch import Batch, Modality
from d2v_plugin.core.contracts import LossOutput, Observation, StepInfo, Views
from d2v_plugin.core.ranges import PositiveInt
from d2v_plugin.core.validation import Checked, report
from d2v_plugin.criteria.baselines.base import ComparisonCriterion
from d2v_plugin.criteria.targets import normalize_patches
from d2v_plugin.masking.base import MaskSection
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.models.data2vec2.encoder import build_blocks
from d2v_plugin.models.data2vec2.frontends.base import fill_in, select_tokens
from d2v_plugin.models.data2vec2.frontends.image import SinusoidalPositions
from d2v_plugin.models.data2vec2.model import Data2VecModel


@dataclass(kw_only=True)
class MaeMaskSection(MaskSection):
    """Selects the mask sampler; published is ``random`` with 75 %."""

    name: str = "random"

    config: object = field(default_factory=lambda: {"ratio": 0.75})


@dataclass(kw_only=True)
class MaeConfig(Checked):
    """Settings of ``mae``; the defaults are those of the paper's ViT-B and ViT-L."""

    masking: MaeMaskSection = field(default_factory=MaeMaskSection)
    """Selects the mask sampler."""

    decoder_dim: PositiveInt = 512
    """Width of the decoder."""

    decoder_depth: PositiveInt = 8
    """Transformer blocks of the decoder."""

    decoder_num_heads: PositiveInt = 16
    """Attention heads of the decoder; must divide ``decoder_dim``."""

    @override
    def validate(self) -> ValidationResult:
        dim, num_heads = self.decoder_dim, self.decoder_num_heads

        return report(
            (
                num_heads > 0 and dim % num_heads != 0,
                f"`decoder_num_heads` must divide `decoder_dim` ({dim}), but is {num_heads}.",
            ),
            (dim % 4 != 0, f"`decoder_dim` must be a multiple of 4, for its 2-D positions, but is {dim}."),
            base=super().validate(),
        )


class MaeCriterion(ComparisonCriterion[MaeConfig]):
    """The objective of MAE; owns its decoder.

    The same pixels behind data2vec's own decoder are ``reconstruction_weight: 1`` and ``regression_weight: 0`` of ``data2vec2``.
    """

    modality = Modality.IMAGE
    metric_names = ("masked_fraction",)
    decoder: MaeDecoder

    @override
    def build_head(self, model: Data2VecModel) -> None:
        self.decoder = MaeDecoder(self.config, model.config)

    @override
    def freeze_constants(self) -> None:
        super().freeze_constants()
        self.decoder.positions.requires_grad_(False)

    @override
    def forward(self, model: Data2VecModel, batch: Batch, step: StepInfo, *, mask: Tensor | None = None) -> LossOutput:
        """
        :param mask: (N, S), True = masked, equally many in every row; None = drawn from (seed, step, sample id).
        """
        local = model.extract_local(batch.inputs)
        views = self.draw_views(model, batch, local, step, mask)
        predictions = self.decoder(model.encode_views(local, views), views)

        assert model.config.image is not None
        pixels = select_tokens(normalize_patches(batch.inputs, model.config.image.patch_shape), views.masked)
        # Mean over the pixels of a patch, sum over patches.
        loss = F.mse_loss(predictions.float(), pixels, reduction="sum") / pixels.size(-1)

        metrics = {"masked_fraction": torch.tensor(views.masked.size(1) / local.x.size(1))}

        return LossOutput(loss, views.masked.numel(), metrics, Observation(local.x.detach(), predictions=predictions.detach()))


class MaeDecoder(nn.Module):
    """Pre-norm Transformer over all patches: encoded ones where they were kept, one learned token where they were masked."""

    def __init__(self, config: MaeConfig, encoder: Data2VecConfig) -> None:
        super().__init__()
        assert encoder.image is not None
        image, dim = encoder.image, config.decoder_dim
        transformer = Data2VecConfig(
            dim=dim,
            depth=config.decoder_depth,
            num_heads=config.decoder_num_heads,
            norm_first=True,
            norm_eps=1e-6,
            dropout=0.0,
            attention_dropout=0.0,
            post_mlp_dropout=0.0,
        )
        self.embed = nn.Linear(encoder.dim, dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        self.positions = SinusoidalPositions(image.grid, dim)
        self.blocks = build_blocks(transformer, transformer.depth, drop_path=(0.0, 0.0), layer_drop=0.0)
        self.norm = nn.LayerNorm(dim, eps=transformer.norm_eps)
        self.proj = nn.Linear(dim, image.values_per_patch)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As published: Xavier's uniform distribution for linear layers, N(0, 0.02) for the mask token."""
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, views: Views) -> Tensor:
        """
        :param x: (N, X + K, D) the encoder's output, extra tokens first.
        :returns: (N, S - K, P·Q·C)
        """
        x = self.embed(x)
        num_extra = x.size(1) - views.kept.size(1)
        extra, x = x[:, :num_extra], x[:, num_extra:]
        mask_tokens = self.mask_token.expand(*views.masked.shape, -1)
        # In the precision of the tokens, also where autocast made the encoded patches less precise.
        x = fill_in(views, x.to(mask_tokens.dtype), mask_tokens) + self.positions(views.grid)

        x = torch.cat([extra, x], dim=1)
        for block in self.blocks:
            x, _ = block(x)

        return self.proj(self.norm(select_tokens(x[:, num_extra:], views.masked)))  # type: ignore[no-any-return]
