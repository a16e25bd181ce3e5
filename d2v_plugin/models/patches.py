"""Patches of images, which both families share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from fairseq2.utils.validation import ValidationResult
from torch import Tensor, nn
from typing_extensions import override

from d2v_plugin.core.batch import Grid, as_grid
from d2v_plugin.core.validation import Checked, report
from d2v_plugin.models.ranges import Size

_MAX_PATCHES: Final = 1 << 14


@dataclass(kw_only=True)
class PatchConfig(Checked):
    """Images cut into patches."""

    image_size: Size | tuple[Size, Size] = 224
    """Height and width, in pixels; one number = both. Other sizes are taken too, with positions interpolated."""

    patch_size: Size | tuple[Size, Size] = 16
    """Height and width of a patch, in pixels; one number = both."""

    num_channels: Size = 3
    """Channels of the images."""

    @property
    def image_shape(self) -> Grid:
        """Height and width, in pixels."""
        return as_grid(self.image_size)

    @property
    def patch_shape(self) -> Grid:
        """Height and width of a patch, in pixels."""
        return as_grid(self.patch_size)

    @property
    def grid(self) -> Grid:
        """Patches down and across."""
        (height, width), (down, across) = self.image_shape, self.patch_shape
        return height // down, width // across

    @property
    def values_per_patch(self) -> int:
        """Values of a patch in all channels."""
        return self.num_channels * math.prod(self.patch_shape)

    def cut(self, images: Tensor) -> Grid:
        """Patches down and across of images (N, C, H, W).

        :raises ValueError: they have other channels, or patches do not divide them.
        """
        shape, (down, across) = tuple(images.shape), self.patch_shape
        if len(shape) != 4 or shape[1] != self.num_channels:
            raise ValueError(
                f"`inputs` must be images of {self.num_channels} channel(s), (N, C, H, W), but has the shape {shape}."
            )
        if shape[2] % down or shape[3] % across or not images.numel():
            raise ValueError(f"`inputs` must divide into patches of {down} x {across} pixels, but has the shape {shape}.")

        return shape[2] // down, shape[3] // across

    @override
    def validate(self) -> ValidationResult:
        pairs = zip(self.image_shape, self.patch_shape, strict=True)
        return report(
            (
                any(patch > 0 and size % patch for size, patch in pairs),
                f"`patch_size` must divide `image_size` ({show_size(self.image_size)}), but is {show_size(self.patch_size)}.",
            ),
            base=super().validate(),
        )


def show_size(size: int | tuple[int, int]) -> str:
    """A size of images or patches as recipes have it."""
    return f"{list(size)}" if isinstance(size, Sequence) else f"{size:,}"


def check_patches(config: PatchConfig) -> Iterator[tuple[bool, str]]:
    """Check that an image has a number of patches for which the tables of positions fit into memory."""
    count = math.prod(config.grid)
    yield (
        count > _MAX_PATCHES,
        f"`image.image_size` ({show_size(config.image_size)}) and `image.patch_size` ({show_size(config.patch_size)}) make "
        f"{count:,} patches of an image; at most {_MAX_PATCHES:,} are possible.",
    )


class PatchEmbedding(nn.ModuleDict):
    """A linear map of every patch: (N, C, H, W) -> (N, S, D), row by row.

    A dictionary of one, for the name of its parameters in the original.
    """

    def __init__(self, config: PatchConfig, dim: int, *, name: str) -> None:
        super().__init__({name: nn.Conv2d(config.num_channels, dim, config.patch_shape, stride=config.patch_shape)})

    def forward(self, x: Tensor) -> Tensor:
        (conv,) = self.values()

        # (N, C, H, W) -> (N, D, H/P, W/P) -> (N, S, D)
        return conv(x).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


def refuse_padding(padding_mask: Tensor | None) -> None:
    """
    :raises ValueError: images are padded.
    """
    if padding_mask is not None:
        raise ValueError("`padding_mask` must be None for images.")
