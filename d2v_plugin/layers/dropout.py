"""Dropout for CPUs, whose masks are hashes: an eighth of the time of PyTorch's, and nothing is kept for the backward pass.

PyTorch draws one number after the other (6 ns each on 2 threads of a Xeon) and keeps them as floats. Here the seed of a call
comes from PyTorch's generator, which training saves and restores, and every factor from a hash of seed and position, in pieces
that stay in the caches; the backward pass computes them again. Skip this at first reading.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from typing_extensions import override

from d2v_plugin.core.random import Stream, finalize, hash_columns, hash_rows
from d2v_plugin.layers.cpu import uses_own_kernels

PIECE_SIZE: Final = 2**19
"""Elements that are worked on at a time: 2 MiB of floats."""


class Dropout(nn.Dropout):
    """As :class:`torch.nn.Dropout`."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        if not uses_own_kernels(x):
            return F.dropout(x, self.p)
        return _HashedDropout.apply(None, x, self.p, draw_seed())  # type: ignore[no-any-return, no-untyped-call]


def add_dropped(x: Tensor, y: Tensor, dropout: nn.Dropout) -> Tensor:
    """``x + dropout(y)``, on a CPU without a tensor for what is added.

    :param x, y: of the same shape.
    """
    if not dropout.training or dropout.p == 0.0 or not uses_own_kernels(y):
        return x + dropout(y)  # type: ignore[no-any-return]
    return _HashedDropout.apply(x, y, dropout.p, draw_seed())  # type: ignore[no-any-return, no-untyped-call]


def drop_rows(x: Tensor, rate: float) -> Tensor:
    """Stochastic depth: whole rows become zero at random (arXiv 1603.09382); torchvision's takes a quarter of a second to import.

    :param x: (R, ...)
    :param rate: less than 1; 0 outside of training.
    """
    if rate == 0.0:
        return x
    return x * x.new_empty(len(x), *[1] * (x.dim() - 1)).bernoulli_(1.0 - rate).div_(1.0 - rate)


def draw_seed() -> Tensor:
    """Draw what the masks of one call are made of; a scalar tensor."""
    return torch.randint(2**62, ())


class DropoutFactors:
    """The factors, 0 or 1 / (1 - rate), of elements that are worked on piece by piece."""

    def __init__(self, seed: Tensor, rate: float, num_pieces: int, piece_size: int) -> None:
        """
        :param rate: probability of 0; rounded to a multiple of 2^-16.
        """
        self._rows = hash_rows(seed + torch.arange(num_pieces), Stream.DROPOUT)
        count = (piece_size + 1) // 2
        # Powers of two, so that sequences of all lengths share a few.
        self._columns = _columns(1 << (count - 1).bit_length())[:count]
        self._factors = torch.empty(2 * len(self._columns))
        num_kept = max(1, round((1.0 - rate) * 2**16))
        self._threshold, self._scale = num_kept - 2**15, 2**16 / num_kept

    def draw(self, piece: int, count: int) -> Tensor:
        """(count,) fp32: the factors of the elements of a piece, in memory that the next call writes to again."""
        # One word serves two elements: halves are between -2^15 and 2^15, floats exactly.
        words = finalize(self._rows[piece] ^ self._columns[: (count + 1) // 2])
        factors = self._factors[: 2 * len(words)].copy_(words.view(torch.int16))
        return factors.lt_(self._threshold).mul_(self._scale)[:count]


@lru_cache(maxsize=32)
def _columns(count: int) -> Tensor:
    return hash_columns(count, torch.device("cpu"))


class _HashedDropout(torch.autograd.Function):
    """``dropout(y)``, or ``x + dropout(y)`` without a tensor for what is added."""

    @staticmethod
    def forward(ctx: Any, x: Tensor | None, y: Tensor, rate: float, seed: Tensor) -> Tensor:
        ctx.rate, ctx.dtype, ctx.is_sum = rate, y.dtype, x is not None
        ctx.save_for_backward(seed)
        return _drop(y, rate, seed, added_to=x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        (seed,) = ctx.saved_tensors
        return grad if ctx.is_sum else None, _drop(grad.to(ctx.dtype), ctx.rate, seed), None, None


def _drop(x: Tensor, rate: float, seed: Tensor, added_to: Tensor | None = None) -> Tensor:
    x = x.contiguous()
    dtype = x.dtype if added_to is None else torch.promote_types(x.dtype, added_to.dtype)
    output = torch.empty_like(x, dtype=dtype)
    pieces, outputs = x.view(-1).split(PIECE_SIZE), output.view(-1).split(PIECE_SIZE)
    addends = [None] * len(pieces) if added_to is None else added_to.reshape(-1).split(PIECE_SIZE)
    factors = DropoutFactors(seed, rate, len(pieces), len(pieces[0]))
    for i, (piece, addend, dropped) in enumerate(zip(pieces, addends, outputs, strict=True)):
        if addend is None:
            torch.mul(piece, factors.draw(i, len(piece)), out=dropped)
        else:
            torch.addcmul(addend, piece, factors.draw(i, len(piece)), out=dropped)

    return output
