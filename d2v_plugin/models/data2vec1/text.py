"""Text: learned positions, then a post-norm Transformer, as RoBERTa."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from typing_extensions import override

from d2v_plugin.layers.dropout import Dropout
from d2v_plugin.models.data2vec1.base import Data2Vec1Model, Encoder1, EncoderInput, attention_mask
from d2v_plugin.models.data2vec1.blocks import BlockOutput, build_post_norm_blocks
from d2v_plugin.models.data2vec1.config import Data2Vec1ModelConfig, Text1Config
from d2v_plugin.models.data2vec2.config import TextConfig
from d2v_plugin.models.data2vec2.encoder import BlockList
from d2v_plugin.models.data2vec2.frontends.text import TokenEmbedding


class Data2VecTextModel(Data2Vec1Model):
    """Token ids (N, S) -> (N, S, D)."""

    def __init__(self, config: Data2Vec1ModelConfig, text: Text1Config) -> None:
        super().__init__(config)
        self.text = text
        self.encoder = nn.ModuleDict({"sentence_encoder": SentenceEncoder(config, text)})
        if config.head_layers > 0:
            self.encoder["regression_head"] = _build_head(config)

    @property
    @override
    def context_encoder(self) -> Encoder1:
        return self.encoder["sentence_encoder"]  # type: ignore[return-value]

    @property
    @override
    def blocks(self) -> BlockList:
        return self.encoder["sentence_encoder"].layers  # type: ignore[return-value]

    @property
    @override
    def head_modules(self) -> tuple[str, ...]:
        return ("encoder.regression_head",) if self.config.head_layers > 0 else ()

    @property
    @override
    def frontend_modules(self) -> tuple[str, ...]:
        return ("encoder.sentence_encoder.embed_tokens", "encoder.sentence_encoder.embed_positions")

    @property
    @override
    def prediction_modules(self) -> tuple[str, ...]:
        return self.head_modules

    @property
    @override
    def local_modules(self) -> tuple[str, ...]:
        return ()

    @property
    def mask_idx(self) -> int:
        """Token id of ``<mask>``."""
        return self.text.vocab_size - 1 if self.text.mask_idx is None else self.text.mask_idx

    @override
    def extract_local(self, inputs: Tensor) -> Tensor:
        return inputs

    @override
    def mask_local(self, local: Tensor, mask: Tensor | None) -> Tensor:
        return local if mask is None else local.masked_fill(mask, self.mask_idx)

    @override
    def predict(self, x: Tensor) -> Tensor:
        return self.encoder["regression_head"](x) if self.config.head_layers > 0 else x


class SentenceEncoder(TokenEmbedding, Encoder1):
    """Embeddings and Transformer; the names of both are in one module, as in the original."""

    position_modules = ("embed_tokens", "embed_positions", "layernorm_embedding")

    def __init__(self, config: Data2Vec1ModelConfig, text: Text1Config) -> None:
        embedding = TextConfig(vocab_size=text.vocab_size, pad_idx=text.pad_idx, max_positions=text.max_positions, dropout=0.0)
        super().__init__(config.dim, embedding)
        self.layernorm_embedding = nn.LayerNorm(config.dim, eps=config.norm_eps)
        # Not part of the embedding, which the teacher may share with a student in training.
        self.input_dropout = Dropout(config.dropout)
        self.layers = build_post_norm_blocks(config)

    @override
    def prepare(self, local: Tensor, padding_mask: Tensor | None = None, context: Tensor | None = None) -> EncoderInput:
        return EncoderInput(self(local), attention_mask(padding_mask, context))

    @override
    def run(self, inputs: EncoderInput) -> Iterator[BlockOutput]:
        x = self.input_dropout(inputs.x)
        for layer in self.layers:
            output: BlockOutput = layer(x, inputs.mask)
            x = output.block
            yield output


def _build_head(config: Data2Vec1ModelConfig) -> nn.Sequential:
    layers: list[nn.Module] = []
    in_dim = config.dim
    for _ in range(config.head_layers - 1):
        layers += [nn.Linear(in_dim, 2 * config.dim), nn.GELU()]
        in_dim = 2 * config.dim

    return nn.Sequential(*layers, nn.Linear(in_dim, config.dim))
