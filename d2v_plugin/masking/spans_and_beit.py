"""The masks of data2vec 1.0: spans for speech and text, BEiT's blocks for images.

As all masks of this package they are stateless (see :mod:`d2v_plugin.masking.base`) and mask equally many positions in every row.
The original's counts are random, around the ones here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from typing_extensions import override

from d2v_plugin.core.contracts import mark_positions
from d2v_plugin.core.random import Stream, uniform
from d2v_plugin.core.ranges import PositiveInt, PositiveShare, ProperShare
from d2v_plugin.core.validation import Checked
from d2v_plugin.masking.base import MaskSampler, MaskSection, MaskSettingsError, Shape, count_cells, valid_lengths

MAX_BLOCK_TRIES = 10
"""BEiT gives up on a row after this many blocks in a row that do not fit."""


@dataclass(kw_only=True)
class SpanMaskConfig(Checked):
    """Settings of ``span``."""

    probability: ProperShare = 0.65
    """The share of positions in spans if spans did not overlap: ``length`` times the probability to start one."""

    length: PositiveInt = 10
    """Length of a span."""

    ratio: ProperShare | None = None
    """The share of masked positions. None = the share that such spans cover on average; spans are added one by one until that
    many positions are masked, and the last span is cut. A number below that share drops random single positions from the
    spans until it is reached, which is what fairseq does to the rows of a batch to make them equal (about 0.45 for speech)."""

    reach_over: bool = False
    """Spans may start anywhere and are cut at the end of the row (text); otherwise all of them fit into the row (speech)."""


@dataclass(kw_only=True)
class SpanMaskSection(MaskSection):
    """Selects the mask sampler; published are spans for speech and text, BEiT's blocks (``beit_block``) for images."""

    name: str = "span"


@dataclass(frozen=True)
class SpanMaskSampler(MaskSampler):
    """Masks spans at random starts, all different (wav2vec 2.0, section 3.1; for text, data2vec's released configuration)."""

    config: SpanMaskConfig

    @override
    def num_masked(self, length: int | Shape) -> int:
        length = count_cells(length)
        if self.config.ratio is not None:
            return int(length * self.config.ratio)

        return _covered(length, self.config.probability, self.config.length, self.config.reach_over)

    @override
    def validate(self, shape: Shape) -> None:
        if len(shape) != 1:
            raise MaskSettingsError(f"`span` masks sequences, but `shape` is {shape}. Use `beit_block` for images.")
        if not 1 <= self.config.length <= shape[0]:
            raise MaskSettingsError(
                f"`length` must be between 1 and the input's length ({shape[0]}), but is {self.config.length}. "
                f"Change `length` or leave out inputs this short."
            )
        super().validate(shape)

    @override
    def prefer(self, keys: Tensor, shape: Shape, shortest: Shape, padding_mask: Tensor | None) -> Tensor | None:
        config, length = self.config, shape[0]
        lengths = valid_lengths(keys, length, padding_mask)
        if config.ratio is None:
            # Each span starts elsewhere and so adds a position: these are enough.
            num_masked = self.num_masked(shortest)
            order = self._order_spans(keys, length, lengths, num_masked)
            # The earliest spans first, each from its start: (R, S) -> (R, num_masked)
            rank = order * length + torch.arange(length, device=keys.device)

            return mark_positions(rank.topk(num_masked, dim=1, largest=False, sorted=False).indices, length)

        # Round the number of spans at random, as the original does.
        rounding = uniform(keys, 1, stream=Stream.ROUNDING).double()
        num_spans = (lengths * config.probability / config.length + rounding).long().clamp_(min=1)
        most = min(length, int(length * config.probability / config.length) + 1)

        return self._order_spans(keys, length, lengths, most) < num_spans

    def _order_spans(self, keys: Tensor, length: int, lengths: Tensor, num_spans: int) -> Tensor:
        """For each position the number of the earliest span that covers it: (R, S) int64, ``num_spans`` = none."""
        config = self.config
        positions = torch.arange(length, device=keys.device)
        last_start = lengths - 1 if config.reach_over else lengths - config.length
        draws = uniform(keys, length, stream=Stream.WINDOWS)
        # The position decides between equal draws, so that every device orders them alike.
        rank = (draws * 2**24).long() * length + positions
        starts = rank.masked_fill(positions > last_start, -1).topk(num_spans, dim=1).indices

        # (R, num_spans, length); what lies outside the row goes to a position behind it.
        cells = starts.unsqueeze(-1) + torch.arange(config.length, device=keys.device)
        outside = (starts > last_start).unsqueeze(-1) | (cells >= lengths.unsqueeze(-1))
        cells = cells.masked_fill(outside, length)
        numbers = torch.arange(num_spans, device=keys.device).view(1, -1, 1).expand_as(cells)
        order = torch.full((keys.size(0), length + 1), num_spans, device=keys.device)

        return order.scatter_reduce_(1, cells.flatten(1), numbers.flatten(1), "amin")[:, :length]


@lru_cache(maxsize=4096)
def _covered(length: int, probability: float, span_length: int, reach_over: bool) -> int:
    """Count the positions that the spans cover on average, rounded."""
    num_starts = length if reach_over else length - span_length + 1
    if num_starts < 1:
        return 0
    share = min(1.0, probability * length / span_length / num_starts)

    # Positions near the borders are in fewer spans.
    spans_at = (min(i, num_starts - 1) - max(0, i - span_length + 1) + 1 for i in range(length))

    return round(sum(1 - (1 - share) ** count for count in spans_at))


@dataclass(kw_only=True)
class BeitBlockMaskConfig(Checked):
    """Settings of ``beit_block``."""

    num_patches: PositiveInt = 120
    """Number of masked patches: 120 of 196 in the paper (60 %), 75 in BEiT and in fairseq's configuration."""

    min_block: PositiveInt = 16
    """Smallest area of a block, in patches, as long as that many are left to mask."""

    max_block: PositiveInt | None = None
    """Largest area of a block; None = as many as are left to mask."""

    min_aspect: PositiveShare = 0.3
    """Aspect ratios are between this and its inverse."""

    max_tries: PositiveInt = 30
    """Blocks that are tried in all; what is missing then is masked patch by patch."""


@dataclass(frozen=True)
class BeitBlockMaskSampler(MaskSampler):
    """Masks rectangles of random area and shape one after another (BEiT, algorithm 1).

    Few patches may be missing when no block fits any more; they are masked one by one. BEiT leaves them visible.
    """

    config: BeitBlockMaskConfig

    @override
    def num_masked(self, length: int | Shape) -> int:
        return self.config.num_patches

    @override
    def validate(self, shape: Shape) -> None:
        if len(shape) != 2:
            raise MaskSettingsError(f"`beit_block` masks images, but `shape` is {shape}. Use `span` for sequences.")
        if self.config.num_patches >= math.prod(shape):
            raise MaskSettingsError(
                f"`num_patches` must be less than the number of patches ({math.prod(shape)}), but is {self.config.num_patches}."
            )

    @override
    def prefer(self, keys: Tensor, shape: Shape, shortest: Shape, padding_mask: Tensor | None) -> Tensor | None:
        config, (height, width) = self.config, shape
        rows = torch.arange(height, device=keys.device).view(1, -1, 1)
        columns = torch.arange(width, device=keys.device).view(1, 1, -1)
        # In double precision, where roots and powers of different devices round to the same integer.
        draws = uniform(keys, 4 * config.max_tries, stream=Stream.BLOCKS).double().view(-1, config.max_tries, 4)

        region = torch.zeros((keys.size(0), height, width), dtype=torch.bool, device=keys.device)
        left = torch.full((keys.size(0),), config.num_patches, device=keys.device)
        failures = torch.zeros_like(left)

        for area_draw, aspect_draw, top_draw, left_draw in (draw.unbind(-1) for draw in draws.unbind(1)):
            most = left if config.max_block is None else left.clamp(max=config.max_block)
            area = config.min_block + area_draw * (most - config.min_block)
            aspect = torch.exp((2 * aspect_draw - 1) * math.log(1 / config.min_aspect))
            block_height, block_width = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
            top = (top_draw * (height - block_height + 1)).floor()
            first = (left_draw * (width - block_width + 1)).floor()

            # (R) -> (R, H, W)
            inside = _between(rows, top, block_height) & _between(columns, first, block_width)
            num_new = (inside & ~region).sum(dim=(1, 2))
            fits = (block_height < height) & (block_width < width) & (num_new > 0) & (num_new <= most)
            fits &= failures < MAX_BLOCK_TRIES
            region |= inside & fits[:, None, None]
            left = left - num_new * fits
            failures = torch.where(fits, 0, failures + 1)

        return region.flatten(1)


def _between(cells: Tensor, start: Tensor, size: Tensor) -> Tensor:
    start = start[:, None, None]

    return (cells >= start) & (cells < start + size[:, None, None])
