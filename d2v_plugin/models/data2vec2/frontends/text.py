"""Text: token embeddings, learned positions, norm."""

from __future__ import annotations

from d2v_plugin.core.batch import Modality
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.models.data2vec2.frontend_config import TextFrontendConfig
from d2v_plugin.models.data2vec2.frontends.base import Frontend
from d2v_plugin.models.tokens import TokenEmbedding


class TextFrontend(Frontend):
    """Token ids (N, S) -> (N, S, D)."""

    modality = Modality.TEXT
    project_features = None

    def __init__(self, config: Data2VecConfig, text: TextFrontendConfig) -> None:
        # Without a prenet the norm of the embeddings is enough.
        super().__init__(config, text, context_norm=text.prenet_depth > 0)
        self.local_encoder = TokenEmbedding(
            config.dim,
            vocab_size=text.vocab_size,
            pad_idx=text.pad_idx,
            max_positions=text.max_positions,
            position_scale=text.position_scale,
            dropout=text.dropout,
        )
