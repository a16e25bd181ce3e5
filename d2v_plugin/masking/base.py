"""Masks: pure functions of (seed, step, sample id, view), drawn on the device without host synchronisation.

Random numbers are counter based, see :mod:`d2v_plugin.core.random`. Hashes are integers and identical on every device; so are
masks, which are made from hashes by comparing integers only.

``True`` = masked, everywhere. Samplers are registered by name (``random``, ``block``, ``inverse_block``); see
:mod:`d2v_plugin.core.registry` for adding one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from fairseq2.recipe.error import RecipeError
from torch import Tensor

from d2v_plugin.core.contracts import mark_positions
from d2v_plugin.core.random import Stream, draw_words
from d2v_plugin.core.registry import ComponentSection

Shape = tuple[int, ...]
"""(S,) of a sequence or (H, W) of an image, in frames, tokens or patches."""


class MaskSettingsError(RecipeError, ValueError):
    """The settings of a sampler do not suit what is to be masked; shapes are known when there are samples, not before."""


class MaskSampler(ABC):
    """Draws masks; registered by name. A sampler holds its configuration and no state.

    Subclasses say how many cells to mask and which they would like to; the base class makes the count exact.
    """

    def __call__(
        self, keys: Tensor, shape: Shape, *, padding_mask: Tensor | None = None, min_length: int | None = None
    ) -> Tensor:
        """Draw one mask for every key.

        :param keys: (R,) int64 from :meth:`d2v_plugin.core.contracts.StepInfo.keys`.
        :param padding_mask: (R, S) bool, True = padding, at the end: the last rows of a grid.
        :param min_length: the number of valid positions in the shortest row; required with ``padding_mask``. The share of
            masked positions is that of the shortest row; longer rows mask just as many.
        :returns: (R, S) bool, True = masked, rows of an image one after another. Every row masks exactly
            ``num_masked(min_length or shape)`` cells, none of them padding.
        :raises ValueError: the settings mask nothing or everything of this shape.
        """
        if (padding_mask is None) != (min_length is None):
            raise ValueError("`padding_mask` and `min_length` must be specified together.")
        shortest = shape if min_length is None else (min_length // math.prod(shape[1:]), *shape[1:])
        self.validate(shortest)

        # The largest of these numbers are masked: first the preferred cells, at random among equals. No two are equal, since
        # the position is part of the number.
        num_cells = math.prod(shape)
        rank = draw_words(keys, num_cells, stream=Stream.CELLS) << 30 | torch.arange(num_cells, device=keys.device)
        preferred = self.prefer(keys, shape, shortest, padding_mask)
        if preferred is not None:
            rank = rank | preferred.to(torch.int64) << 62
        if padding_mask is not None:
            rank = rank.masked_fill(padding_mask, -1)

        # (R, S) -> (R, num_masked) -> (R, S)
        return mark_positions(rank.topk(self.num_masked(shortest), dim=1, sorted=False).indices, num_cells)

    @abstractmethod
    def num_masked(self, length: int | Shape) -> int:
        """Count the cells that are masked in each row of this length or shape."""

    @abstractmethod
    def prefer(self, keys: Tensor, shape: Shape, shortest: Shape, padding_mask: Tensor | None) -> Tensor | None:
        """Say which cells to mask: (R, S) bool, or None for no preference.

        Where these are too many, random ones are dropped; where too few, random others are added.

        :param shortest: the shape of the shortest row: ``shape`` itself, unless there is padding.
        """

    def validate(self, shape: Shape) -> None:
        """Check the settings against the shape of the shortest row.

        :raises ValueError: nothing or everything would be masked.
        """
        num_cells, num_masked = math.prod(shape), self.num_masked(shape)
        if not 0 < num_masked < num_cells:
            share = "nothing" if num_masked <= 0 else "everything"

            raise MaskSettingsError(
                f"`ratio` must leave something masked and something visible, but masks {share} ({num_masked}) of {num_cells} "
                f"position(s): {self}. Change `ratio` or leave out inputs this short."
            )


@dataclass(kw_only=True)
class MaskSection(ComponentSection):
    """Selects the mask sampler."""

    base: ClassVar[type[MaskSampler]] = MaskSampler

    name: str = "inverse_block"


def count_cells(length: int | Shape) -> int:
    """The number of cells of a row of this length or shape."""
    return length if isinstance(length, int) else math.prod(length)


def valid_lengths(keys: Tensor, length: int, padding_mask: Tensor | None) -> Tensor:
    """(R, 1) int64: how many positions of each row are no padding.

    :param keys: (R,); they say how many rows there are.
    :param padding_mask: (R, length), True = padding.
    """
    if padding_mask is None:
        return torch.full((keys.size(0), 1), length, device=keys.device)

    return (~padding_mask).sum(dim=1, keepdim=True)
