"""Masks: pure functions of (seed, step, sample id, view), drawn on the device without host synchronisation.

Random numbers are counter based: a number is a hash of its row's key, of its position in the row and of a *stream*. The same
sample therefore gets the same mask and the same noise whatever the batch, its order, the rank, the device or a resume. Hashes are
integers and identical on every device; so are masks, which are made from hashes by comparing integers only.

``True`` = masked, everywhere. Samplers are registered by name (``random``, ``block``, ``inverse_block``); see
:mod:`d2v_plugin.core.registry` for adding one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from fairseq2.utils.validation import Validatable, ValidationResult
from torch import Tensor
from typing_extensions import override

from d2v_plugin.core.random import Stream, _draw_words
from d2v_plugin.core.registry import ComponentSection


def split_mask(mask: Tensor, num_masked: int) -> tuple[Tensor, Tensor]:
    """Turn masks into positions, without host synchronisation.

    :param mask: (R, S) bool, True = masked.
    :param num_masked: how many positions every row masks: :meth:`MaskSampler.num_masked`.
    :returns: (R, S-num_masked) int64 kept positions and (R, num_masked) int64 masked positions, both ascending.
    """
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)

    num_kept = mask.size(1) - num_masked

    return order[:, :num_kept], order[:, num_kept:]


def mark_positions(positions: Tensor, length: int) -> Tensor:
    """The inverse of :func:`split_mask`: positions (R, K) -> (R, length) bool, True there."""
    mask = torch.zeros((positions.size(0), length), dtype=torch.bool, device=positions.device)

    return mask.scatter_(1, positions, True)


class MaskSampler(ABC):
    """Draws masks; registered by name. A sampler holds its configuration and no state.

    Subclasses say how many cells to mask and which they would like to; the base class makes the count exact.
    """

    def __call__(
        self,
        keys: Tensor,
        shape: tuple[int, ...],
        *,
        padding_mask: Tensor | None = None,
        min_length: int | None = None,
    ) -> Tensor:
        """Draw one mask for every key.

        :param keys: (R,) int64 from :func:`row_keys`.
        :param shape: (S,) of a sequence or (H, W) of an image, in frames, tokens or patches.
        :param padding_mask: (R, S) bool, True = padding, at the end of the rows; sequences only.
        :param min_length: the number of valid positions in the shortest row; required with ``padding_mask``. The share of
            masked positions is that of the shortest row; longer rows mask just as many.
        :returns: (R, S) bool, True = masked, rows of an image one after another. Every row masks exactly
            ``num_masked(min_length or shape)`` cells, none of them padding.
        :raises ValueError: the settings mask nothing or everything of this shape.
        """
        if (padding_mask is None) != (min_length is None):
            raise ValueError("`padding_mask` and `min_length` must be specified together.")

        if padding_mask is not None and len(shape) != 1:
            raise ValueError(f"`padding_mask` is for sequences, but `shape` is {shape}.")

        shortest = shape if min_length is None else (min_length,)

        self.validate(shortest)

        # The largest of these numbers are masked: first the preferred cells, at random among equals. No two are equal, since
        # the position is part of the number.
        num_cells = math.prod(shape)

        rank = _draw_words(keys, num_cells, Stream.CELLS) << 30 | torch.arange(num_cells, device=keys.device)

        preferred = self.prefer(keys, shape, shortest, padding_mask)
        if preferred is not None:
            rank = rank | preferred.to(torch.int64) << 62

        if padding_mask is not None:
            rank = rank.masked_fill(padding_mask, -1)

        # (R, S) -> (R, num_masked)
        masked = rank.topk(self.num_masked(shortest), dim=1, sorted=False).indices

        return torch.zeros_like(rank, dtype=torch.bool).scatter_(1, masked, True)

    @abstractmethod
    def num_masked(self, length: int | tuple[int, ...]) -> int:
        """How many cells are masked in each row of this length or shape."""

    @abstractmethod
    def prefer(
        self, keys: Tensor, shape: tuple[int, ...], shortest: tuple[int, ...], padding_mask: Tensor | None
    ) -> Tensor | None:
        """Say which cells to mask: (R, S) bool, or None for no preference.

        Where these are too many, random ones are dropped; where too few, random others are added.

        :param shortest: the shape of the shortest row: ``shape`` itself, unless there is padding.
        """

    def validate(self, shape: tuple[int, ...]) -> None:
        """Check the settings against the shape of the shortest row.

        :raises ValueError: nothing or everything would be masked.
        """
        num_cells, num_masked = math.prod(shape), self.num_masked(shape)

        if not 0 < num_masked < num_cells:
            share = "nothing" if num_masked <= 0 else "everything"

            raise ValueError(
                f"`ratio` must leave something masked and something visible, but masks {share} ({num_masked}) of {num_cells} "
                f"position(s): {self}. Change `ratio` or leave out inputs this short."
            )


@dataclass(kw_only=True)
class RandomMaskConfig(Validatable):
    ratio: float = 0.48
    """The share of masked positions, between 0 and 1."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if not 0.0 < self.ratio < 1.0:
            result.add_error(f"`ratio` must be greater than 0 and less than 1, but is {self.ratio}.")

        return result


@dataclass(kw_only=True)
class BlockMaskConfig(RandomMaskConfig):
    ratio: float = 0.8
    """The share of masked positions, between 0 and 1."""

    block_size: int = 3
    """Length of a window in positions; for images the side of a square."""

    adjust: float = 0.07
    """Added to the share that windows are drawn for, to make up for their overlaps. Whatever it is, missing and surplus positions
    are added and dropped one by one at random; the higher it is, the fewer isolated positions are added."""

    dropout: float = 0.0
    """Draw this share more windows, and so drop more random positions from them."""

    @override
    def validate(self) -> ValidationResult:
        result = super().validate()

        if self.block_size < 1:
            result.add_error(f"`block_size` must be at least 1, but is {self.block_size}.")

        if not -1.0 < self.adjust < 1.0:
            result.add_error(f"`adjust` must be greater than -1 and less than 1, but is {self.adjust}.")

        if self.dropout < 0.0:
            result.add_error(f"`dropout` must not be negative, but is {self.dropout}.")

        return result


@dataclass(frozen=True)
class RandomMaskSampler(MaskSampler):
    """Masks positions independently of each other (the text models)."""

    config: RandomMaskConfig

    @override
    def num_masked(self, length: int | tuple[int, ...]) -> int:
        num_cells = _num_cells(length)

        return num_cells - int(num_cells * (1 - self.config.ratio))

    @override
    def prefer(
        self, keys: Tensor, shape: tuple[int, ...], shortest: tuple[int, ...], padding_mask: Tensor | None
    ) -> Tensor | None:
        return None


@dataclass(frozen=True)
class BlockMaskSampler(MaskSampler):
    """Masks windows around random centres (the audio models)."""

    config: BlockMaskConfig

    @override
    def num_masked(self, length: int | tuple[int, ...]) -> int:
        return int(_num_cells(length) * self.config.ratio)

    @override
    def prefer(
        self, keys: Tensor, shape: tuple[int, ...], shortest: tuple[int, ...], padding_mask: Tensor | None
    ) -> Tensor | None:
        return draw_windows(keys, shape, self._num_windows(shortest, self.config.ratio), self.config.block_size, padding_mask)

    @override
    def validate(self, shape: tuple[int, ...]) -> None:
        if not 1 <= self.config.block_size <= min(shape):
            raise ValueError(
                f"`block_size` must be between 1 and the input's smallest side ({min(shape)}), but is {self.config.block_size}. "
                f"Change `block_size` or leave out inputs this short."
            )

        super().validate(shape)

    def _num_windows(self, shape: tuple[int, ...], share: float) -> int:
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
    def num_masked(self, length: int | tuple[int, ...]) -> int:
        num_cells = _num_cells(length)

        return num_cells - int(num_cells * (1 - self.config.ratio))

    @override
    def prefer(
        self, keys: Tensor, shape: tuple[int, ...], shortest: tuple[int, ...], padding_mask: Tensor | None
    ) -> Tensor | None:
        num_windows = self._num_windows(shortest, 1 - self.config.ratio)

        return ~draw_windows(keys, shape, num_windows, self.config.block_size, padding_mask)


def draw_windows(
    keys: Tensor, shape: tuple[int, ...], num_windows: int, block_size: int, padding_mask: Tensor | None = None
) -> Tensor:
    """Draw windows with replacement around centres uniform over the valid cells, clamped at the borders.

    :returns: (R, S) bool, True = in a window; may reach into padding.
    """
    num_cells = math.prod(shape)

    lengths = num_cells if padding_mask is None else (~padding_mask).sum(dim=1, keepdim=True)

    # (R, num_windows), uniform in [0, length): a product of less than 63 bits
    centres = _draw_words(keys, num_windows, Stream.WINDOWS) * lengths >> 32

    reach = torch.arange(block_size, device=keys.device) - block_size // 2

    cells = torch.zeros((keys.size(0), num_windows, 1), dtype=torch.int64, device=keys.device)

    # One dimension after the other: (R, num_windows, block_size^i) -> (R, num_windows, block_size^(i+1))
    stride = num_cells
    for side in shape:
        stride //= side
        coordinates = (centres // stride % side)[:, :, None] + reach
        cells = (cells[:, :, :, None] + coordinates.clamp_(0, side - 1)[:, :, None, :] * stride).flatten(2)

    region = torch.zeros((keys.size(0), num_cells), dtype=torch.bool, device=keys.device)

    return region.scatter_(1, cells.flatten(1), True)


def _num_cells(length: int | tuple[int, ...]) -> int:
    return length if isinstance(length, int) else math.prod(length)


@dataclass(kw_only=True)
class MaskSection(ComponentSection):
    """Selects the mask sampler."""

    base: ClassVar[type[MaskSampler]] = MaskSampler

    name: str = "inverse_block"
