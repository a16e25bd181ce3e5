"""Transformer blocks: the shared encoder and the prenets are made of them."""

from __future__ import annotations

from torch import Tensor, nn

from d2v_plugin.layers.attention import Bias, attend
from d2v_plugin.layers.dropout import Dropout, add_dropped, drop_rows
from d2v_plugin.layers.feed_forward import FeedForward, norm_feed_forward
from d2v_plugin.layers.layer_drop import LayerDrop
from d2v_plugin.layers.linear import Linear
from d2v_plugin.models.base import BlockList
from d2v_plugin.models.data2vec2.config import Data2VecConfig


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection, as the original's ``AltAttention``."""

    def __init__(self, config: Data2VecConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.attention_dropout = config.attention_dropout
        self.qkv = Linear(config.dim, 3 * config.dim)
        self.proj = Linear(config.dim, config.dim)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, bias: Bias | None = None) -> Tensor:
        """
        :param x: (R, K, D)
        :param bias: added to the attention logits if floating, selects the keys to attend to if boolean; broadcasts
            to (R, H, K, K).
        :returns: (R, K, D), before :attr:`dropout`, which goes with the residual connection.
        """
        rows, length, dim = x.shape

        # (R, K, D) -> 3 x (R, H, K, D/H)
        q, k, v = self.qkv(x).view(rows, length, 3, self.num_heads, dim // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)

        x = attend(q, k, v, bias, self.attention_dropout if self.training else 0.0)

        # (R, H, K, D/H) -> (R, K, D)
        x = x.transpose(1, 2).reshape(rows, length, dim)

        return self.proj(x)  # type: ignore[no-any-return]


class Block(nn.Module):
    """A Transformer block that also returns its *tap*: the feed-forward output before dropout, residual and norm.

    The taps of the teacher are the targets (data2vec, section 3.3: the FFN output works best).
    """

    def __init__(self, config: Data2VecConfig, *, drop_path: float = 0.0, layer_drop: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, eps=config.norm_eps, elementwise_affine=config.norm_affine)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.dim, eps=config.norm_eps, elementwise_affine=config.norm_affine)
        self.mlp = FeedForward(config.dim, int(config.dim * config.mlp_ratio), config.activation_dropout)
        self.post_mlp_dropout = Dropout(config.post_mlp_dropout)
        self.norm_first = config.norm_first
        self.drop_path = drop_path
        self.layer_drop = LayerDrop(layer_drop)

    def forward(self, x: Tensor, bias: Bias | None = None) -> tuple[Tensor, Tensor]:
        """
        :param x: (R, K, D)
        :param bias: see :class:`Attention`.
        :returns: the output and the tap, both (R, K, D).
        """
        skipped = x

        if self.norm_first:
            x = self._add(x, self.attn(self.norm1(x), bias), self.attn.dropout)
            _, tap = norm_feed_forward(x, self.norm2, self.mlp)
            x = self._add(x, tap, self.post_mlp_dropout)
        else:
            x = self._add(x, self.attn(x, bias), self.attn.dropout)
            x, tap = norm_feed_forward(x, self.norm1, self.mlp)
            x = self.norm2(self._add(x, tap, self.post_mlp_dropout))

        return self.layer_drop(x, skipped), tap

    def _add(self, x: Tensor, branch: Tensor, dropout: Dropout) -> Tensor:
        """The residual connection, with dropout and stochastic depth of what is added."""
        if self.drop_path == 0.0:
            return add_dropped(x, branch, dropout)
        return x + drop_rows(dropout(branch), self.drop_path if self.training else 0.0)


def build_blocks(config: Data2VecConfig, depth: int, *, drop_path: tuple[float, float], layer_drop: float) -> BlockList:
    """A stack of ``depth`` blocks whose stochastic depth goes linearly from the first to the second rate."""
    start, end = drop_path
    rates = [start + (end - start) * i / max(1, depth - 1) for i in range(depth)]
    return BlockList(Block(config, drop_path=rate, layer_drop=layer_drop) for rate in rates)


class ContextEncoder(nn.Module):
    """The norm of a frontend's output and the prenet.

    In post-norm models the norm comes before the blocks, in pre-norm models after them.
    """

    def __init__(
        self, config: Data2VecConfig, depth: int, *, norm: bool, dropout: float, drop_path: tuple[float, float], layer_drop: float
    ) -> None:
        super().__init__()
        self.blocks = build_blocks(config, depth, drop_path=drop_path, layer_drop=layer_drop)
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps, elementwise_affine=config.norm_affine) if norm else None
        self.dropout = Dropout(dropout)
        self.norm_first = config.norm_first

    def forward(self, x: Tensor, biases: list[Bias | None]) -> Tensor:
        """
        :param x: (R, K, D)
        :param biases: one for each block; see :class:`Attention`.
        """
        if not self.norm_first:
            x = self._normalize(x)
        for block, bias in zip(self.blocks, biases, strict=True):
            x, _ = block(x, bias)
        return self._normalize(x) if self.norm_first else x

    def _normalize(self, x: Tensor) -> Tensor:
        return x if self.norm is None else self.dropout(self.norm(x))
