"""Images: patches, fixed 2-D sine-cosine positions, CLS token."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from typing_extensions import override

from d2v_plugin.core.batch import Modality
from d2v_plugin.models.data2vec2.config import Data2VecConfig, ImageFrontendConfig
from d2v_plugin.models.data2vec2.frontends.base import Frontend
from d2v_plugin.models.patches import PatchEmbedding, refuse_padding


class ImageFrontend(Frontend):
    """(N, C, H, W) -> (N, S, D), S patches row by row."""

    modality = Modality.IMAGE
    num_spatial_dims = 2
    project_features = None
    side: int

    def __init__(self, config: Data2VecConfig, image: ImageFrontendConfig) -> None:
        super().__init__(config, image, context_norm=True)
        self.side = image.side
        embed_dim = config.dim if image.embed_dim is None else image.embed_dim
        patches = PatchEmbedding(image, embed_dim, name="proj")
        self.local_encoder = patches if embed_dim == config.dim else nn.Sequential(patches, nn.Linear(embed_dim, config.dim))
        self.fixed_positional_encoder = SinusoidalPositions((self.side, self.side), config.dim) if image.fixed_positions else None

    @override
    def freeze_constants(self) -> None:
        super().freeze_constants()
        if self.fixed_positional_encoder is not None:
            self.fixed_positional_encoder.positions.requires_grad_(False)

    @override
    def encode_local(self, inputs: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        if inputs.shape[-2] % self.side or inputs.shape[-1] % self.side:
            shape = tuple(inputs.shape)
            raise ValueError(f"`inputs` must divide into {self.side} x {self.side} patches, but has the shape {shape}.")
        return super().encode_local(inputs, padding_mask)

    @override
    def _downsample_padding(self, padding_mask: Tensor | None, length: int) -> Tensor | None:
        refuse_padding(padding_mask)
        return None

    @override
    def _add_positions(self, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        # In the precision of the table, also where autocast made patches less precise.
        return x if self.fixed_positional_encoder is None else x + self.fixed_positional_encoder.positions


class SinusoidalPositions(nn.Module):
    """Fixed table: the first half of the channels encodes the column, the second half the row, each as sines, then cosines."""

    def __init__(self, shape: tuple[int, int], dim: int) -> None:
        """:param shape: rows and columns of the grid."""
        super().__init__()
        self.shape = shape
        self.positions = nn.Parameter(torch.empty(1, math.prod(shape), dim), requires_grad=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.positions.is_meta:
            return
        dim, (rows, columns) = self.positions.size(-1), self.shape
        frequencies = torch.exp(-math.log(10_000.0) * torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
        angles = torch.arange(max(rows, columns), dtype=torch.float64).unsqueeze(-1) * frequencies
        # (side, D / 2)
        axis = torch.cat([angles.sin(), angles.cos()], dim=-1)
        column = axis[:columns].repeat(rows, 1)
        row = axis[:rows].repeat_interleave(columns, dim=0)
        with torch.no_grad():
            self.positions.copy_(torch.cat([column, row], dim=-1).unsqueeze(0))
