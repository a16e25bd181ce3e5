"""Text: token embeddings, learned positions, norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from d2v_plugin.layers.dropout import Dropout
from d2v_plugin.models.data2vec2.config import Data2VecConfig, TextConfig
from d2v_plugin.models.data2vec2.frontends.base import Frontend


class TextFrontend(Frontend):
    """Token ids (N, S) -> (N, S, D)."""

    def __init__(self, config: Data2VecConfig, text: TextConfig) -> None:
        # Without a prenet the norm of the embeddings is enough.
        super().__init__(config, text, context_norm=text.prenet_depth > 0, num_spatial_dims=1)
        self.local_encoder = TokenEmbedding(config.dim, text)
        self.project_features = None

    @override
    def _encode_local(self, inputs: Tensor) -> Tensor:
        assert self.local_encoder is not None

        return self.local_encoder(inputs)  # type: ignore[no-any-return]

    @override
    def _downsample_padding(self, padding_mask: Tensor | None, length: int) -> Tensor | None:
        return padding_mask


class TokenEmbedding(nn.Module):
    """Token and position embeddings; positions count the tokens that are not padding, from ``pad_idx + 1``."""

    def __init__(self, dim: int, text: TextConfig) -> None:
        super().__init__()
        self.pad_idx = text.pad_idx
        self.max_positions = text.max_positions
        self.embed_tokens = nn.Embedding(text.vocab_size, dim, padding_idx=text.pad_idx)
        self.embed_positions = nn.Embedding(text.max_positions + text.pad_idx + 1, dim, padding_idx=text.pad_idx)
        self.layernorm_embedding = nn.LayerNorm(dim)
        self.dropout = Dropout(text.dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.size(1)
        if length > self.max_positions:
            raise ValueError(f"`inputs` must have at most {self.max_positions} tokens (`max_positions`), but has {length}.")

        valid = tokens.ne(self.pad_idx).to(torch.int64)
        positions = valid.cumsum(dim=1) * valid + self.pad_idx
        x = self.embed_tokens(tokens) + self.embed_positions(positions)

        return self.dropout(self.layernorm_embedding(x))  # type: ignore[no-any-return]
