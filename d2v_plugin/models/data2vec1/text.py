"""Text: learned positions, then a post-norm Transformer, as RoBERTa."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn
from typing_extensions import override

from d2v_plugin.layers.dropout import Dropout
from d2v_plugin.layers.feed_forward import build_projection
from d2v_plugin.models.base import LocalFeatures
from d2v_plugin.models.data2vec1.base import Data2Vec1Model, Encoder, EncoderInput, attention_mask
from d2v_plugin.models.data2vec1.blocks import build_sequence_blocks
from d2v_plugin.models.data2vec1.config import Data2Vec1ModelConfig, TextConfig
from d2v_plugin.models.tokens import TokenEmbedding


class Data2VecTextModel(Data2Vec1Model):
    """Token ids (N, S) -> (N, S, D)."""

    encoder_name = "encoder.sentence_encoder"
    head_name = "encoder.regression_head"
    frontend_modules = ("encoder.sentence_encoder.embed_tokens", "encoder.sentence_encoder.embed_positions")
    prediction_modules = head_modules = (head_name,)
    local_modules = ()

    def __init__(self, config: Data2Vec1ModelConfig, text: TextConfig) -> None:
        super().__init__(config)
        self.text = text
        self.encoder = nn.ModuleDict({"sentence_encoder": SentenceEncoder(config, text)})
        if config.head_layers > 0:
            dim = config.dim
            self.encoder["regression_head"] = build_projection(dim, 2 * dim, dim, num_layers=config.head_layers)

    @property
    def mask_idx(self) -> int:
        """Token id of ``<mask>``."""
        return self.text.vocab_size - 1 if self.text.mask_idx is None else self.text.mask_idx

    @override
    def embed_tokens(self, inputs: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        return inputs

    @override
    def mask_local(self, local: LocalFeatures, mask: Tensor | None, fill: Tensor | None = None) -> LocalFeatures:
        return local if mask is None else replace(local, x=local.x.masked_fill(mask, self.mask_idx))


class SentenceEncoder(TokenEmbedding, Encoder):
    """Embeddings and Transformer; the names of both are in one module, as in the original."""

    position_modules = ("embed_tokens", "embed_positions", "layernorm_embedding")

    def __init__(self, config: Data2Vec1ModelConfig, text: TextConfig) -> None:
        super().__init__(
            config.dim,
            vocab_size=text.vocab_size,
            pad_idx=text.pad_idx,
            max_positions=text.max_positions,
            position_scale=text.position_scale,
            dropout=0.0,
        )
        self.layernorm_embedding = nn.LayerNorm(config.dim, eps=config.norm_eps)
        # Not part of the embedding, which the teacher may share with a student in training.
        self.input_dropout = Dropout(config.dropout)
        self.layers = build_sequence_blocks(config)
        self.original_padding = config.original_padding

    @override
    def prepare(self, local: Tensor, padding_mask: Tensor | None = None, context: Tensor | None = None) -> EncoderInput:
        x = self(local)
        if self.original_padding and padding_mask is not None:
            # Nobody attends to them, but they are in the statistics of normalised targets.
            x = x.masked_fill(padding_mask.unsqueeze(-1), 0.0)
        return EncoderInput(x, attention_mask(padding_mask, context))

    @override
    def start(self, x: Tensor) -> Tensor:
        return self.input_dropout(x)  # type: ignore[no-any-return]
