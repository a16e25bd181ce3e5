"""Images: patches, fixed 2-D sine-cosine positions, CLS token."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from typing_extensions import override

from d2v_plugin.core.batch import Grid, Modality
from d2v_plugin.models.base import LocalFeatures
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.models.data2vec2.frontend_config import ImageFrontendConfig
from d2v_plugin.models.data2vec2.frontends.base import Frontend
from d2v_plugin.models.patches import PatchEmbedding, refuse_padding


class ImageFrontend(Frontend):
    """(N, C, H, W) -> (N, S, D), S patches row by row."""

    modality = Modality.IMAGE
    num_spatial_dims = 2
    project_features = None

    def __init__(self, config: Data2VecConfig, image: ImageFrontendConfig) -> None:
        super().__init__(config, image, context_norm=True)
        self.image = image
        embed_dim = config.dim if image.embed_dim is None else image.embed_dim
        patches = PatchEmbedding(image, embed_dim, name="proj")
        self.local_encoder = patches if embed_dim == config.dim else nn.Sequential(patches, nn.Linear(embed_dim, config.dim))
        self.fixed_positional_encoder = SinusoidalPositions(image.grid, config.dim) if image.fixed_positions else None

    @override
    def freeze_constants(self) -> None:
        super().freeze_constants()
        if self.fixed_positional_encoder is not None:
            self.fixed_positional_encoder.positions.requires_grad_(False)

    @override
    def find_grid(self, inputs: Tensor) -> Grid:
        return self.image.cut(inputs)

    @override
    def _downsample_padding(self, padding_mask: Tensor | None, length: int) -> Tensor | None:
        refuse_padding(padding_mask)
        return None

    @override
    def _add_positions(self, local: LocalFeatures) -> Tensor:
        # In the precision of the table, also where autocast made patches less precise.
        return local.x if self.fixed_positional_encoder is None else local.x + self.fixed_positional_encoder(local.grid)


class SinusoidalPositions(nn.Module):
    """Fixed table: the first half of the channels encodes the column, the second half the row, each as sines, then cosines."""

    def __init__(self, grid: Grid, dim: int) -> None:
        super().__init__()
        self.grid = grid
        self.positions = nn.Parameter(torch.empty(1, math.prod(grid), dim), requires_grad=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.positions.is_meta:
            return
        with torch.no_grad():
            self.positions.copy_(self._compute(self.grid))

    def forward(self, grid: Grid) -> Tensor:
        """The positions of a grid, (1, S, D): the table, or those of a grid stretched over the same place."""
        if grid == self.grid:
            return self.positions
        return self._compute(grid).to(self.positions)

    def _compute(self, grid: Grid) -> Tensor:
        """(1, S, D) fp64, on the CPU."""
        dim = self.positions.size(-1)
        frequencies = torch.exp(-math.log(10_000.0) * torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
        axes = []
        for size, own in zip(grid, self.grid, strict=True):
            # Centres of patches, counted in patches of the table; whole numbers for the table itself.
            places = (torch.arange(size, dtype=torch.float64) + 0.5) * (own / size) - 0.5
            angles = places.unsqueeze(-1) * frequencies
            axes.append(torch.cat([angles.sin(), angles.cos()], dim=-1))
        # (H, D / 2) and (W, D / 2) -> (1, H·W, D)
        rows, columns = axes

        return torch.cat([columns.repeat(grid[0], 1), rows.repeat_interleave(grid[1], dim=0)], dim=-1).unsqueeze(0)
