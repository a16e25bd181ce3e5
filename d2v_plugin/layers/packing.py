"""Padded batches without their padding: all sequences one behind the other, as one row; layers cost what its tokens cost.

What works on each token by itself takes such a row as any other; attention gets a :class:`PackedBias`, which says where
sequences begin. Results are those of the padded batch; at padded positions they are zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._compile import _disable_dynamo  # as `torch.compiler.disable`, which takes a second to import the compiler

from d2v_plugin.layers.cpu import uses_own_kernels


class Packing:
    """Where the tokens of a padded batch are, and where they are in the row."""

    def __init__(self, padding_mask: Tensor, lengths: list[int]) -> None:
        """
        :param padding_mask: (N, S), True = padding, all at the end.
        :param lengths: N numbers of the other tokens.
        """
        self.padding_mask = padding_mask
        self.lengths = lengths
        # (T,) places of the other tokens, counted over the whole batch; their number is known, so the host need not wait for it.
        self._places = torch.nonzero_static(~padding_mask.flatten(), size=sum(lengths)).squeeze(1)

    def pack(self, x: Tensor) -> Tensor:
        """(N, S, ...) -> (1, T, ...), T tokens that are no padding."""
        return x.flatten(0, 1).index_select(0, self._places).unsqueeze(0)

    def unpack(self, x: Tensor) -> Tensor:
        """(1, T, ...) -> (N, S, ...)"""
        shape = self.padding_mask.shape
        return x.new_zeros(shape.numel(), *x.shape[2:]).index_copy(0, self._places, x[0]).view(*shape, *x.shape[2:])


class PackedBias:
    """The bias of attention in a packed row: none from one sequence to another, in each the same."""

    def __init__(self, packing: Packing, bias: Tensor | None) -> None:
        """
        :param bias: of a sequence as long as the longest, broadcasts to (1, H, S, S); None = nothing is added.
        """
        self._packing = packing
        self._bias = bias
        mask = packing.padding_mask[:, None, None, :]
        self._is_split = uses_own_kernels(mask)
        if not self._is_split:
            self._bias = ~mask if bias is None else bias.masked_fill(mask, -torch.inf)

    def attend(self, attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        """Attention within each sequence.

        :param attend: :func:`d2v_plugin.layers.attention.attend`.
        :param q, k, v: (1, H, T, E)
        :returns: (1, H, T, E)
        """
        if self._is_split:
            return self._attend_one_by_one(attend, q, k, v, dropout)

        # Other devices want few large kernels: attention alone is padded again. (1, H, T, E) -> (N, H, S, E)
        q, k, v = (self._packing.unpack(x.transpose(1, 2)).transpose(1, 2) for x in (q, k, v))
        return self._packing.pack(attend(q, k, v, self._bias, dropout).transpose(1, 2)).transpose(1, 2)

    @_disable_dynamo  # a graph would be made for each set of lengths
    def _attend_one_by_one(self, attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        lengths = self._packing.lengths
        parts = []
        for inputs in zip(*(x.split(lengths, dim=2) for x in (q, k, v)), strict=True):
            length = inputs[0].size(2)
            bias = None if self._bias is None else self._bias[..., :length, :length]
            parts.append(attend(*inputs, bias, dropout) if length > 0 else inputs[2])

        return torch.cat(parts, dim=2)


def find_packing(padding_mask: Tensor | None, lengths: Sequence[int] | None = None, num_extra: int = 0) -> Packing | None:
    """Find out how a batch is packed.

    :param padding_mask: (N, S), True = padding.
    :param lengths: how many positions of each sequence are none, all at its beginning; None = it is looked up, for which the
        host waits for the device.
    :param num_extra: tokens before each sequence.
    :returns: None = there is no padding, or some that is not at the end; or a program is compiled or exported, which is the same
        for all batches.
    """
    if padding_mask is None or torch.compiler.is_compiling():
        return None
    if lengths is None:
        counts = (~padding_mask).sum(dim=1)
        is_at_end = padding_mask == (torch.arange(padding_mask.size(1), device=padding_mask.device) >= counts.unsqueeze(1))
        if not bool(is_at_end.all()):
            return None
        lengths = counts.tolist()

    return Packing(F.pad(padding_mask, (num_extra, 0)), [length + num_extra for length in lengths])


def wants_samples(x: Tensor) -> bool:
    """Tell whether samples are to be convolved by themselves: other devices want few large kernels."""
    return uses_own_kernels(x)


def map_samples(
    function: Callable[[Tensor], Tensor], x: Tensor, padding_mask: Tensor, *, length: int, shortest: int = 1
) -> Tensor:
    """Apply a function to each sample of a padded batch by itself, without its padding.

    :param function: (1, S_n, C) -> (1, S'_n, C')
    :param x: (N, S, C)
    :param padding_mask: (N, S), True = padding, at the end.
    :param length: S' of the longest possible sample.
    :param shortest: input of the function; shorter samples keep some of their padding.
    :returns: (N, S', C'), zeros behind the shorter ones.
    """
    lengths = (~padding_mask).sum(dim=1).clamp_min(shortest).tolist()
    outputs = [function(row[None, :own]) for row, own in zip(x, lengths, strict=True)]

    return torch.cat([F.pad(output, (0, 0, 0, length - output.size(1))) for output in outputs])
