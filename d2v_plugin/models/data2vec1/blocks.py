"""Transformer blocks of data2vec 1.0: post-norm for speech and text, BEiT's pre-norm for images.

Every block returns all that the paper compares as targets (its ablation "target feature type"): see :class:`BlockOutput`.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import override

from d2v_plugin.layers.attention import Bias, attend
from d2v_plugin.layers.dropout import Dropout, drop_rows
from d2v_plugin.layers.feed_forward import norm_two_layers
from d2v_plugin.layers.layer_drop import LayerDrop
from d2v_plugin.layers.linear import Linear, linear, linear_gelu
from d2v_plugin.models.base import BlockList
from d2v_plugin.models.data2vec1.config import Data2Vec1ModelConfig, ImageConfig
from d2v_plugin.models.positions import NUM_CLS_ROWS, count_offsets

BlockFeature = Literal["ffn", "ffn_residual", "block", "attention"]
"""Part of a block that can be a target; a field of :class:`BlockOutput`."""


class BlockOutput(NamedTuple):
    """Results of one block, each (N, S, D)."""

    block: Tensor
    """The output of the block."""

    ffn: Tensor
    """The feed-forward output before dropout and residual; after LayerScale and stochastic depth for images."""

    ffn_residual: Tensor
    """The feed-forward output plus residual, before the last norm; for pre-norm blocks the same as ``block``."""

    attention: Tensor
    """The self-attention output before residual and norm."""


class MultiheadAttention(nn.Module):
    """Multi-head self-attention with separate projections, as fairseq's ``MultiheadAttention``."""

    def __init__(self, config: Data2Vec1ModelConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.attention_dropout = config.attention_dropout
        self.k_proj = Linear(config.dim, config.dim)
        self.v_proj = Linear(config.dim, config.dim)
        self.q_proj = Linear(config.dim, config.dim)
        self.out_proj = Linear(config.dim, config.dim)

    def forward(self, x: Tensor, bias: Bias | None) -> Tensor:
        """
        :param x: (N, S, D)
        :param bias: True = attend to this key; broadcasts to (N, H, S, S).
        """
        q, k, v = (_split_heads(proj(x), self.num_heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(_attend(q, k, v, bias, self.attention_dropout if self.training else 0.0))  # type: ignore[no-any-return]


class PostNormBlock(nn.Module):
    """fairseq's Transformer layer of speech and text models."""

    def __init__(self, config: Data2Vec1ModelConfig) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.fc1 = Linear(config.dim, config.ffn_dim)
        self.fc2 = Linear(config.ffn_dim, config.dim)
        self.final_layer_norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.dropout = Dropout(config.dropout)
        self.activation_dropout = Dropout(config.activation_dropout)
        self.layer_drop = LayerDrop(config.layer_drop)

    def forward(self, x: Tensor, bias: Bias | None = None) -> BlockOutput:
        """
        :param x: (N, S, D)
        :param bias: see :class:`MultiheadAttention`.
        """
        skipped = x
        attention = self.self_attn(x, bias)
        x = x + self.dropout(attention)
        x, ffn = norm_two_layers(x, self.self_attn_layer_norm, self.fc1, self.fc2, self.activation_dropout)
        ffn_residual = x + self.dropout(ffn)
        x = self.final_layer_norm(ffn_residual)

        return BlockOutput(self.layer_drop(x, skipped), ffn, ffn_residual, attention)


class PreNormBlock(PostNormBlock):
    """The same layer with both norms before what they belong to, as in wav2vec 2.0's large models."""

    @override
    def forward(self, x: Tensor, bias: Bias | None = None) -> BlockOutput:
        skipped = x
        attention = self.self_attn(self.self_attn_layer_norm(x), bias)
        x = x + self.dropout(attention)
        _, ffn = norm_two_layers(x, self.final_layer_norm, self.fc1, self.fc2, self.activation_dropout)
        x = x + self.dropout(ffn)

        return BlockOutput(self.layer_drop(x, skipped), ffn, x, attention)


class BeitAttention(nn.Module):
    """BEiT's self-attention: one fused projection, no bias for keys, optionally a table of relative positions of its own."""

    def __init__(self, config: Data2Vec1ModelConfig, image: ImageConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.attention_dropout = config.attention_dropout
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.q_bias = nn.Parameter(torch.empty(config.dim))
        self.v_bias = nn.Parameter(torch.empty(config.dim))
        self.proj = Linear(config.dim, config.dim)
        if image.relative_positions == "per_layer":
            self.relative_position_bias_table = nn.Parameter(torch.empty(table_size(image), config.num_heads))
        else:
            self.register_parameter("relative_position_bias_table", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Zero the parameters that no child module owns."""
        for parameter in (self.q_bias, self.v_bias, self.relative_position_bias_table):
            if parameter is not None:
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, bias: Bias | None) -> Tensor:
        """
        :param x: (N, 1 + S, D)
        :param bias: added to the attention logits; broadcasts to (N, H, 1 + S, 1 + S).
        """
        no_bias = torch.zeros_like(self.q_bias)
        qkv = linear(x, self.qkv.weight, torch.cat([self.q_bias, no_bias, self.v_bias]))
        q, k, v = (_split_heads(part, self.num_heads) for part in qkv.chunk(3, dim=-1))

        return self.proj(_attend(q, k, v, bias, self.attention_dropout if self.training else 0.0))  # type: ignore[no-any-return]


class BeitBlock(nn.Module):
    """BEiT's pre-norm block with LayerScale and stochastic depth."""

    gamma_1: nn.Parameter | None
    gamma_2: nn.Parameter | None

    def __init__(self, config: Data2Vec1ModelConfig, image: ImageConfig, *, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.attn = BeitAttention(config, image)
        self.norm2 = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.mlp = nn.Sequential(Linear(config.dim, config.ffn_dim), nn.GELU(), Linear(config.ffn_dim, config.dim))
        self.dropout = Dropout(config.dropout)
        self.drop_path = drop_path
        self.layer_scale = image.layer_scale
        for name in ("gamma_1", "gamma_2"):
            self.register_parameter(name, None if image.layer_scale is None else nn.Parameter(torch.empty(config.dim)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the parameters that no child module owns."""
        for gamma in (self.gamma_1, self.gamma_2):
            if gamma is not None and self.layer_scale is not None:
                nn.init.constant_(gamma, self.layer_scale)

    def forward(self, x: Tensor, bias: Bias | None = None) -> BlockOutput:
        """
        :param x: (N, 1 + S, D)
        :param bias: see :class:`BeitAttention`.
        """
        attention = self._scale(self.attn(self.norm1(x), bias), self.gamma_1)
        x = x + attention
        fc1, _, fc2 = self.mlp
        ffn = self._scale(fc2(linear_gelu(self.norm2(x), fc1)), self.gamma_2)  # type: ignore[arg-type]
        x = x + ffn

        return BlockOutput(x, ffn, x, attention)

    def _scale(self, x: Tensor, gamma: Tensor | None) -> Tensor:
        x = self.dropout(x)
        if gamma is not None:
            x = gamma * x
        return drop_rows(x, self.drop_path if self.training else 0.0)


def build_sequence_blocks(config: Data2Vec1ModelConfig) -> BlockList:
    """The Transformer of a speech or text model."""
    kls = PreNormBlock if config.norm_first else PostNormBlock
    return BlockList(kls(config) for _ in range(config.depth))


def build_beit_blocks(config: Data2Vec1ModelConfig, image: ImageConfig) -> BlockList:
    """The Transformer of a vision model; stochastic depth goes linearly from 0 to ``drop_path``."""
    rates = [config.drop_path * i / max(1, config.depth - 1) for i in range(config.depth)]
    return BlockList(BeitBlock(config, image, drop_path=rate) for rate in rates)


def table_size(image: ImageConfig) -> int:
    """Rows of a table of relative positions: all offsets of two patches, CLS to patch, patch to CLS, CLS to CLS."""
    return math.prod(count_offsets(image.grid)) + NUM_CLS_ROWS


def _split_heads(x: Tensor, num_heads: int) -> Tensor:
    # (N, S, D) -> (N, H, S, D/H)
    return x.view(*x.shape[:2], num_heads, -1).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Bias | None, dropout: float) -> Tensor:
    x = attend(q, k, v, bias, dropout).transpose(1, 2)

    # (N, S, H, D/H) -> (N, S, D)
    return x.reshape(*x.shape[:2], -1)
