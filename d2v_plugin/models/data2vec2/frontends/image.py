"""Images: patches, fixed 2-D sine-cosine positions, CLS token."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from typing_extensions import override

from d2v_plugin.models.data2vec2.config import Data2VecConfig, ImageConfig
from d2v_plugin.models.data2vec2.frontends.base import Frontend


class ImageFrontend(Frontend):
    """(N, C, H, W) -> (N, S, D), S patches row by row."""

    def __init__(self, config: Data2VecConfig, image: ImageConfig) -> None:
        super().__init__(config, image, context_norm=True, num_spatial_dims=2)
        self.side = image.image_size // image.patch_size
        embed_dim = config.dim if image.embed_dim is None else image.embed_dim
        patches = PatchEmbedding(image.num_channels, embed_dim, image.patch_size)
        self.local_encoder = patches if embed_dim == config.dim else nn.Sequential(patches, nn.Linear(embed_dim, config.dim))
        self.project_features = None
        self.fixed_positional_encoder = SinusoidalPositions(self.side, config.dim) if image.fixed_positions else None

    @override
    def freeze_constants(self) -> None:
        super().freeze_constants()
        if self.fixed_positional_encoder is not None:
            self.fixed_positional_encoder.positions.requires_grad_(False)

    @override
    def _encode_local(self, inputs: Tensor) -> Tensor:
        assert self.local_encoder is not None
        if inputs.shape[-2] % self.side or inputs.shape[-1] % self.side:
            shape = tuple(inputs.shape)
            raise ValueError(f"`inputs` must divide into {self.side} x {self.side} patches, but has the shape {shape}.")

        return self.local_encoder(inputs)  # type: ignore[no-any-return]

    @override
    def _downsample_padding(self, padding_mask: Tensor | None, length: int) -> Tensor | None:
        if padding_mask is not None:
            raise ValueError("`padding_mask` must be None for images.")

        return None

    @override
    def _add_positions(self, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        return x if self.fixed_positional_encoder is None else x + self.fixed_positional_encoder.positions.to(x.dtype)

    @property
    @override
    def _grid_width(self) -> int:
        return self.side


class PatchEmbedding(nn.Module):
    """A linear map of every patch."""

    def __init__(self, num_channels: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(num_channels, dim, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        # (N, C, H, W) -> (N, D, H/P, W/P) -> (N, S, D)
        return self.proj(x).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class SinusoidalPositions(nn.Module):
    """Fixed table: the first half of the channels encodes the column, the second half the row, each as sines, then cosines."""

    def __init__(self, side: int, dim: int) -> None:
        super().__init__()
        self.side = side
        self.positions = nn.Parameter(torch.empty(1, side * side, dim), requires_grad=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.positions.is_meta:
            return
        dim = self.positions.size(-1)
        frequencies = torch.exp(-math.log(10_000.0) * torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
        angles = torch.arange(self.side, dtype=torch.float64).unsqueeze(-1) * frequencies
        # (side, D / 2)
        axis = torch.cat([angles.sin(), angles.cos()], dim=-1)
        column = axis.repeat(self.side, 1)
        row = axis.repeat_interleave(self.side, dim=0)
        with torch.no_grad():
            self.positions.copy_(torch.cat([column, row], dim=-1).unsqueeze(0))
