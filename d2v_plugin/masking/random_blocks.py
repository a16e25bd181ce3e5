"""The masks of data2vec 2.0: single positions (text), windows (speech), and everything but windows (images)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from typing_extensions import override

from d2v_plugin.core.contracts import mark_positions
from d2v_plugin.core.random import Stream, draw_words
from d2v_plugin.core.ranges import NonNegativeFloat, PositiveInt, ProperShare, Range
from d2v_plugin.core.validation import Checked
from d2v_plugin.masking.base import MaskSampler, MaskSettingsError, Shape, count_cells, valid_lengths


@dataclass(kw_only=True)
class RandomMaskConfig(Checked):
    """Settings of ``random``."""

    ratio: ProperShare = 0.48
    """The share of masked positions, between 0 and 1."""


@dataclass(kw_only=True)
class BlockMaskConfig(RandomMaskConfig):
    """Settings of ``block`` and ``inverse_block``."""

    ratio: ProperShare = 0.8
    """The share of masked positions, between 0 and 1."""

    block_size: PositiveInt = 3
    """Length of a window in positions; for images the side of a square."""

    adjust: Annotated[float, Range("> -1, < 1")] = 0.07
    """Added to the share that windows are drawn for, to make up for their overlaps. Whatever it is, missing and surplus positions
    are added and dropped one by one at random; the higher it is, the fewer isolated positions are added."""

    dropout: NonNegativeFloat = 0.0
    """Draw this share more windows, and so drop more random positions from them."""


@dataclass(frozen=True)
class RandomMaskSampler(MaskSampler):
    """Masks positions independently of each other (the text models)."""

    config: RandomMaskConfig

    @override
    def num_masked(self, length: int | Shape) -> int:
        num_cells = count_cells(length)

        return num_cells - int(num_cells * (1 - self.config.ratio))

    @override
    def prefer(self, keys: Tensor, shape: Shape, shortest: Shape, padding_mask: Tensor | None) -> Tensor | None:
        return None


@dataclass(frozen=True)
class BlockMaskSampler(MaskSampler):
    """Masks windows around random centres (the audio models)."""

    config: BlockMaskConfig

    @override
    def num_masked(self, length: int | Shape) -> int:
        return int(count_cells(length) * self.config.ratio)

    @override
    def prefer(self, keys: Tensor, shape: Shape, shortest: Shape, padding_mask: Tensor | None) -> Tensor | None:
        return draw_windows(keys, shape, self._num_windows(shortest, self.config.ratio), self.config.block_size, padding_mask)

    @override
    def validate(self, shape: Shape) -> None:
        if not 1 <= self.config.block_size <= min(shape):
            raise MaskSettingsError(
                f"`block_size` must be between 1 and the input's smallest side ({min(shape)}), but is {self.config.block_size}. "
                f"Change `block_size` or leave out inputs this short."
            )
        super().validate(shape)

    def _num_windows(self, shape: Shape, share: float) -> int:
        config = self.config
        # In this order and in double precision, so that truncation gives the number of the original.
        num_windows = math.prod(shape) * ((share + config.adjust) / config.block_size ** len(shape)) * (1 + config.dropout)

        return max(0, int(num_windows))


@dataclass(frozen=True)
class InverseBlockMaskSampler(BlockMaskSampler):
    """Keeps windows around random centres and masks the rest (the image models; data2vec 2.0, "inverse block masking").

    In a padded batch the positions that longer rows keep beyond the shortest row's number are single ones.
    """

    @override
    def num_masked(self, length: int | Shape) -> int:
        num_cells = count_cells(length)

        return num_cells - int(num_cells * (1 - self.config.ratio))

    @override
    def prefer(self, keys: Tensor, shape: Shape, shortest: Shape, padding_mask: Tensor | None) -> Tensor | None:
        num_windows = self._num_windows(shortest, 1 - self.config.ratio)

        return ~draw_windows(keys, shape, num_windows, self.config.block_size, padding_mask)


def draw_windows(keys: Tensor, shape: Shape, num_windows: int, block_size: int, padding_mask: Tensor | None = None) -> Tensor:
    """Draw windows with replacement around centres uniform over the valid cells, clamped at the borders.

    :returns: (R, S) bool, True = in a window; may reach into padding.
    """
    num_cells = math.prod(shape)
    # (R, num_windows), uniform in [0, length): a product of less than 63 bits
    lengths = valid_lengths(keys, num_cells, padding_mask)
    centres = draw_words(keys, num_windows, stream=Stream.WINDOWS) * lengths >> 32
    reach = torch.arange(block_size, device=keys.device) - block_size // 2
    cells = torch.zeros((keys.size(0), num_windows, 1), dtype=torch.int64, device=keys.device)

    # One dimension after the other: (R, num_windows, block_size^i) -> (R, num_windows, block_size^(i+1))
    stride = num_cells
    for side in shape:
        stride //= side
        coordinates = (centres // stride % side)[:, :, None] + reach
        cells = (cells[:, :, :, None] + coordinates.clamp_(0, side - 1)[:, :, None, :] * stride).flatten(2)

    return mark_positions(cells.flatten(1), num_cells)
