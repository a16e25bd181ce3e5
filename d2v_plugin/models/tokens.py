"""Embeddings of token ids, which both families share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from d2v_plugin.layers.dropout import Dropout


class _Ids(Protocol):
    vocab_size: int
    pad_idx: int


def check_ids(config: _Ids) -> Iterator[tuple[bool, str]]:
    """Check that ids of tokens are those of embeddings."""
    for name in ("pad_idx", "mask_idx", "num_special_tokens"):
        number = getattr(config, name, None)
        yield (
            number is not None and number >= config.vocab_size,
            f"`text.{name}` must be less than `text.vocab_size` ({config.vocab_size:,}), but is {number}.",
        )


class TokenEmbedding(nn.Module):
    """Token and position embeddings, norm; positions count the tokens that are not padding, from ``pad_idx + 1``."""

    def __init__(
        self, dim: int, *, vocab_size: int, pad_idx: int, max_positions: int, position_scale: float, dropout: float
    ) -> None:
        super().__init__()
        self.pad_idx = pad_idx
        self.max_positions = max_positions
        self.position_scale = position_scale
        self.embed_tokens = nn.Embedding(vocab_size, dim, padding_idx=pad_idx)
        self.embed_positions = nn.Embedding(max_positions + pad_idx + 1, dim, padding_idx=pad_idx)
        self.layernorm_embedding = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, S) ids -> (N, S, D)

        :raises ValueError: there are too many of them.
        """
        length = tokens.size(1)
        if length > self.max_positions:
            raise ValueError(f"`inputs` must have at most {self.max_positions} tokens (`max_positions`), but has {length}.")

        valid = tokens.ne(self.pad_idx).long()
        positions = valid.cumsum(dim=1) * valid + self.pad_idx
        # With a scale of 1 the sum is exactly that of the embeddings.
        x = torch.add(self.embed_tokens(tokens), self.embed_positions(positions), alpha=self.position_scale)

        return self.dropout(self.layernorm_embedding(x))  # type: ignore[no-any-return]
