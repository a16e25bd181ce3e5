"""Blocks of text: how a stream of tokens is cut into samples."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import numpy as np
from fairseq2.recipe.error import RecipeError

from d2v_plugin.data.text import TokenIds, TokenStream

BreakMode = Literal["none", "complete", "complete_doc", "eos"]


def cut_blocks(stream: TokenStream, max_tokens: int, mode: BreakMode) -> tuple[TokenIds, TokenIds]:
    """Cut a stream into blocks of at most ``max_tokens`` tokens, as fairseq's ``TokenBlockDataset`` does.

    :param mode: ``none``: every block is full, whatever it cuts through; only the last may be shorter.
        ``complete``: whole lines. ``complete_doc``: whole lines of one document. ``eos``: one line each.
        A line that alone is longer is cut off, where fairseq lets the block be longer.
    :returns: (blocks,) starts and ends.
    """
    parts = list(pairwise(stream.bounds.tolist()))
    if mode == "none":
        starts = np.concatenate([np.arange(first, last, max_tokens, dtype=np.int64) for first, last in parts])
        lasts = stream.bounds[np.searchsorted(stream.bounds, starts, side="right")]

        return starts, np.minimum(starts + max_tokens, lasts)
    ends = stream.line_ends()
    starts = np.concatenate([[0], ends[:-1]])
    blocks = []
    for first, last in np.searchsorted(starts, parts).tolist():
        begin, end = starts[first:last], ends[first:last]
        if mode == "complete_doc":
            blocks += [_pack(begin[lines], end[lines], max_tokens) for lines in _split_documents(end - begin)]
        else:
            blocks.append(_pack(begin, end, max_tokens) if mode == "complete" else (begin, end))
    if not blocks:
        raise RecipeError("The split has no line of text.")
    block_starts, block_ends = (np.concatenate(side) for side in zip(*blocks, strict=True))

    return block_starts, np.minimum(block_ends, block_starts + max_tokens)


def _split_documents(line_sizes: TokenIds) -> list[slice]:
    """The lines of each document, without the one-token lines between documents."""
    breaks = np.concatenate([[-1], np.flatnonzero(line_sizes == 1), [len(line_sizes)]]).tolist()
    return [slice(last + 1, end) for last, end in pairwise(breaks) if end > last + 1]


def _pack(starts: TokenIds, ends: TokenIds, max_tokens: int) -> tuple[TokenIds, TokenIds]:
    """Join neighbouring lines while they fit."""
    firsts, line = [], 0
    while line < len(starts):
        firsts.append(line)
        line = max(line + 1, int(np.searchsorted(ends, starts[line] + max_tokens, side="right")))
    return starts[firsts], ends[[*(first - 1 for first in firsts[1:]), len(ends) - 1]]
