"""Interface of the frontends of all modalities: raw input -> local features -> tokens in context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v_plugin.core.batch import Grid, Modality
from d2v_plugin.core.contracts import Views
from d2v_plugin.layers.alibi import DistanceBias, align_bias, attention_biases, distance_weights, token_distances
from d2v_plugin.layers.attention import Bias, is_long
from d2v_plugin.layers.distance_scores import computes_in_kernel, distance_scores
from d2v_plugin.layers.gradients import scale_gradient
from d2v_plugin.layers.packing import PackedBias, Packing, find_packing
from d2v_plugin.layers.precision import without_autocast
from d2v_plugin.models.base import LocalFeatures
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.models.data2vec2.decoder import ConvDecoder
from d2v_plugin.models.data2vec2.encoder import ContextEncoder
from d2v_plugin.models.data2vec2.frontend_config import FrontendConfig


@dataclass
class Tokens:
    """The input of the shared blocks."""

    x: Tensor
    """(R, X + K, D): extra tokens, then the kept ones."""

    biases: list[Bias | None]
    """The bias for the :class:`d2v_plugin.models.data2vec2.encoder.Attention` of each shared block."""


class Frontend(nn.Module):
    """One modality's part of the model; the names of its modules are the original's.

    :meth:`extract_local` sees each sample once; :meth:`contextualize` sees each view, and in it only the kept tokens
    (data2vec 2.0, section 3.1).
    """

    modality: ClassVar[Modality]

    num_spatial_dims: ClassVar[int] = 1
    """2 where tokens lie in a grid, 1 where they are a sequence."""

    local_encoder: nn.Module | None
    project_features: nn.Module | None
    context_encoder: ContextEncoder
    decoder: ConvDecoder | None

    def __init__(self, config: Data2VecConfig, frontend: FrontendConfig, *, context_norm: bool) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.num_layers = frontend.prenet_depth + config.depth
        self.prenet_depth = frontend.prenet_depth
        self.num_extra_tokens = frontend.num_extra_tokens
        self.init_extra_tokens_zero = frontend.init_extra_tokens_zero
        self.extra_tokens_std = frontend.extra_tokens_std
        self.local_grad_scale = frontend.local_grad_scale
        self.alibi = frontend.alibi
        self.drops_paths = max(*config.drop_path, *frontend.prenet_drop_path) > 0.0
        self.original_padding = config.original_padding

        self.context_encoder = ContextEncoder(
            config,
            frontend.prenet_depth,
            norm=context_norm,
            dropout=frontend.prenet_dropout,
            drop_path=frontend.prenet_drop_path,
            layer_drop=frontend.prenet_layer_drop,
        )
        self.decoder = None
        if frontend.decoder is not None:
            self.decoder = ConvDecoder(frontend.decoder, config.dim, num_spatial_dims=self.num_spatial_dims)
        if frontend.num_extra_tokens > 0:
            self.extra_tokens = nn.Parameter(torch.empty(1, frontend.num_extra_tokens, config.dim))
        if frontend.alibi is not None:
            num_scales = self.num_layers if frontend.alibi.per_layer else 1
            num_scaled_heads = (frontend.alibi.num_heads or config.num_heads) if frontend.alibi.per_head else 1
            self.alibi_scale = nn.Parameter(torch.empty(num_scales, 1, num_scaled_heads, 1, 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the parameters that no child module owns."""
        if self.num_extra_tokens > 0:
            nn.init.normal_(self.extra_tokens, std=self.extra_tokens_std)
            if self.init_extra_tokens_zero:
                nn.init.zeros_(self.extra_tokens[:, :1])
        if self.alibi is not None:
            nn.init.constant_(self.alibi_scale, self.alibi.initial_scale)

    def freeze_constants(self) -> None:
        """Exclude from training what is a parameter only by name."""
        if self.alibi is not None and not self.alibi.learned_scale:
            self.alibi_scale.requires_grad_(False)

    def extract_local(self, inputs: Tensor, padding_mask: Tensor | None = None) -> LocalFeatures:
        """Encode every token by itself.

        :param inputs: waveforms (N, T), images (N, C, H, W) or token ids (N, S).
        :param padding_mask: True = padding, at the resolution of the input.
        """
        grid = self.find_grid(inputs)
        return self.project_local(self.encode_local(inputs, padding_mask), padding_mask, grid)

    def encode_local(self, inputs: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """The first half of :meth:`extract_local`: raw input -> (N, S, C)."""
        assert self.local_encoder is not None
        return scale_gradient(self.local_encoder, inputs, self.local_grad_scale)

    def find_grid(self, inputs: Tensor) -> Grid | None:
        """The grid in which the tokens of inputs lie; None = they lie in a sequence."""
        return None

    def project_local(self, x: Tensor, padding_mask: Tensor | None = None, grid: Grid | None = None) -> LocalFeatures:
        """The second half of :meth:`extract_local`: from the local encoder's channels to the model's width."""
        if self.project_features is not None:
            x = self.project_features(x)
        return LocalFeatures(x, self._downsample_padding(padding_mask, x.size(1)), self.modality, grid)

    def contextualize(self, local: LocalFeatures, views: Views | None = None, packing: Packing | None = None) -> Tokens:
        """Add positions, drop the masked tokens and run the prenet.

        :param local: N samples.
        :param views: N·M masked views of them; None = one view of each that keeps everything.
        :param packing: of whole samples and the extra tokens, which then become one row; None = they stay padded.
        """
        if views is None:
            x, padding_mask = self._add_positions(local), local.padding_mask
            positions = torch.arange(x.size(1), device=x.device).unsqueeze(0)
        else:
            x, positions = self._keep_tokens(local, views), views.kept
            padding_mask = None if views.padding_mask is None else views.padding_mask.gather(1, views.kept)

        if self.num_extra_tokens > 0:
            # The more precise of both, which under autocast is that of the parameters.
            x = torch.cat([self.extra_tokens.expand(x.size(0), -1, -1), x], dim=1)
        if packing is not None:
            x = packing.pack(x)
        biases = self._build_biases(positions, padding_mask, local.grid, packing)
        x = self.context_encoder(x, biases[: self.prenet_depth])

        return Tokens(x, biases[self.prenet_depth :])

    def find_packing(self, padding_mask: Tensor | None, lengths: Sequence[int] | None) -> Packing | None:
        """How :meth:`contextualize` is to pack whole samples; None = not at all.

        :param lengths: as for :func:`d2v_plugin.layers.packing.find_packing`.
        """
        if (
            padding_mask is None
            or self.original_padding
            or (self.alibi is not None and self.alibi.in_kernel and computes_in_kernel(padding_mask))
            or is_long((1, self.num_heads, self.num_extra_tokens + padding_mask.size(1)))
        ):
            return None
        # Stochastic depth draws once for each row.
        return None if self.training and self.drops_paths else find_packing(padding_mask, lengths, self.num_extra_tokens)

    def output_length(self, input_length: int) -> int:
        """Number of tokens that an input of this length (samples or token ids) gives."""
        return input_length

    def _downsample_padding(self, padding_mask: Tensor | None, length: int) -> Tensor | None:
        """The padding mask at the resolution of the tokens, (N, S)."""
        return padding_mask

    def _add_positions(self, local: LocalFeatures) -> Tensor:
        return local.x

    def _keep_tokens(self, local: LocalFeatures, views: Views) -> Tensor:
        """Kept tokens with positions, (N·M, K, D)."""
        return select_tokens(self._add_positions(local), views.kept)

    def _build_biases(
        self, positions: Tensor, padding_mask: Tensor | None, grid: Grid | None, packing: Packing | None
    ) -> list[Bias | None]:
        """The attention bias of every block of this frontend and of the shared encoder."""
        num_extra = self.num_extra_tokens
        if packing is not None:
            padding_mask = None
        if padding_mask is not None:
            padding_mask = F.pad(padding_mask, (num_extra, 0))
        if self.alibi is not None and self.alibi.in_kernel and computes_in_kernel(positions):
            weights = distance_weights(self.alibi_scale, self.num_heads, self.alibi.num_heads)
            return self._share(
                distance_scores(
                    positions,
                    weights,
                    grid_width=None if grid is None else grid[1],
                    metric=self.alibi.distance,
                    num_extra_tokens=num_extra,
                    padding_mask=padding_mask,
                )
            )
        if padding_mask is not None:
            # (R, X + K) -> (R, 1, 1, X + K)
            padding_mask = padding_mask[:, None, None, :]
        if self.alibi is None:
            only = PackedBias(packing, None) if packing is not None else None if padding_mask is None else ~padding_mask
            return [only] * self.num_layers

        learns = torch.is_grad_enabled() and self.alibi_scale.requires_grad
        if grid is None and not learns and is_long((len(positions), self.num_heads, num_extra + positions.size(1))):
            weights = distance_weights(self.alibi_scale, self.num_heads, self.alibi.num_heads)
            return self._share(
                [DistanceBias(positions, w, num_extra_tokens=num_extra, padding_mask=padding_mask) for w in weights]
            )

        with without_autocast(positions):
            distances = token_distances(positions, None if grid is None else grid[1], self.alibi.distance)
            biases = attention_biases(
                distances,
                self.alibi_scale,
                num_heads=self.num_heads,
                num_extra_tokens=num_extra,
                num_biased_heads=self.alibi.num_heads,
            )
        if padding_mask is not None:
            biases = [bias.masked_fill(padding_mask, -torch.inf) for bias in biases]
        found: list[Bias] = [align_bias(bias) if packing is None else PackedBias(packing, bias) for bias in biases]

        return self._share(found)

    def _share(self, biases: Sequence[Bias]) -> list[Bias | None]:
        """One scale for all layers: the bias is built once."""
        return [*biases] * self.num_layers if len(biases) == 1 else [*biases]


def select_tokens(x: Tensor, positions: Tensor) -> Tensor:
    """Gather tokens of each sample for each of its views.

    :param x: (N, S, D) or (N·M, S, D)
    :param positions: (N·M, K); the views of a sample are adjacent.
    :returns: (N·M, K, D)
    """
    num_samples, length = x.shape[:2]
    num_views = positions.size(0) // num_samples
    if torch.are_deterministic_algorithms_enabled() and num_views > 1:
        # A copy for each view: their gradients meet in a sum of fp32, in one order, instead of in atomics on the rows of `x`.
        copies = x.float().unsqueeze(1).expand(-1, num_views, -1, -1).flatten(0, 1)
        return select_tokens(copies, positions).to(x.dtype)
    first = torch.arange(num_samples, device=x.device).repeat_interleave(num_views) * length

    return x.flatten(0, 1).index_select(0, (positions + first.unsqueeze(-1)).flatten()).view(*positions.shape, x.size(-1))


def fill_in(views: Views, kept: Tensor, masked: Tensor) -> Tensor:
    """Put the tokens of each view in their order: (N·M, K, D) and (N·M, S - K, D) -> (N·M, S, D)."""
    order = torch.cat([views.kept, views.masked], dim=1).argsort(dim=1)

    return select_tokens(torch.cat([kept, masked.to(kept.dtype)], dim=1), order)
