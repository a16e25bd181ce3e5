"""Configuration of data2vec 2.0 for transformers: frontends of speech, images and text over one Transformer.

This file belongs to the models beside it. It needs transformers alone.
"""

from __future__ import annotations

import math
from typing import Any

from transformers import PretrainedConfig

# Settings of the frontends of all modalities.
_COMMON: dict[str, Any] = {
    "prenet_depth": 0,  # Transformer blocks of this modality alone, below the shared ones
    "prenet_layer_drop": 0.0,
    "prenet_dropout": 0.0,
    "prenet_drop_path": [0.0, 0.0],
    "num_extra_tokens": 0,  # learned tokens before the sequence; the last is the CLS token
    "local_grad_scale": 1.0,  # factor of the gradient of convolutions or embeddings; 0 freezes them
    "alibi": None,  # biases of attention by distance
}
_ALIBI: dict[str, Any] = {
    "learned_scale": True,
    "per_head": True,
    "per_layer": False,
    "distance": "manhattan",  # of patches; or "euclidean", or "sequential": row by row
    "num_heads": None,  # how many heads have a bias, the first ones; None = all
}
_AUDIO: dict[str, Any] = {
    **_COMMON,
    "conv_layers": [[512, 10, 5], *[[512, 3, 2]] * 4, *[[512, 2, 2]] * 2],  # channels, kernel, stride
    "conv_norm": "layer_norm",  # after every convolution, or "group_norm" after the first
    "conv_bias": False,
    "position_kernel": 19,
    "position_groups": 16,
    "position_depth": 5,
    "position_norm": True,  # after each position convolution
    "position_pre_norm": False,
}
_IMAGE: dict[str, Any] = {
    **_COMMON,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "embed_dim": None,  # channels of the patch embedding, if others than those of the Transformer
    "fixed_positions": True,
}
_TEXT: dict[str, Any] = {
    **_COMMON,
    "vocab_size": 50265,
    "pad_idx": 1,
    "max_positions": 512,
    "position_scale": 1.0,
    "dropout": 0.1,
}


class Data2Vec2Config(PretrainedConfig):
    """A model: one frontend or several (``audio``, ``image``, ``text``), the shared Transformer, and a head."""

    model_type = "data2vec2"

    def __init__(
        self,
        audio: dict[str, Any] | None = None,
        image: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        mlp_ratio: float = 4.0,
        norm_first: bool = False,
        layer_norm_eps: float = 1e-5,
        norm_affine: bool = True,
        input_dropout: float = 0.0,
        hidden_dropout: float = 0.1,
        attention_dropout: float = 0.1,
        activation_dropout: float = 0.0,
        post_mlp_dropout: float = 0.1,
        layer_drop: float = 0.0,
        drop_path: tuple[float, float] | list[float] = (0.0, 0.0),
        original_padding: bool = False,
        initializer_range: float = 0.02,
        head_pooling: str = "mean",
        head_norm: bool = True,
        head_norm_eps: float = 1e-6,
        head_hidden: bool = False,
        head_dropout: float = 0.0,
        vocab_size: int | None = None,
        pad_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        """
        :param norm_first: norms before attention and feed-forward layers; the published models have them behind.
        :param norm_affine: norms of blocks and of frontends learn scale and bias.
        :param post_mlp_dropout: dropout between the feed-forward layers and the residual.
        :param layer_drop: probability of skipping a block in training.
        :param drop_path: stochastic depth of the first and the last block; linear in between.
        :param original_padding: padding as fairseq treats it: positions of valid frames see padded ones.
        :param head_pooling: one vector of tokens for classification, ``mean`` or ``cls``; of the probabilities of tags at all
            frames ``linear_softmax`` or ``frame_mean``.
        :param head_norm: layer norm before the classifier.
        :param head_hidden: a layer with tanh before it.
        :param vocab_size: symbols of CTC, the blank included.
        :param pad_token_id: of CTC the blank; of text what is padding.
        """
        self.audio = None if audio is None else _complete(_AUDIO, audio)
        self.image = None if image is None else _complete(_IMAGE, image)
        self.text = None if text is None else _complete(_TEXT, text)
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.mlp_ratio = mlp_ratio
        self.norm_first = norm_first
        self.layer_norm_eps = layer_norm_eps
        self.norm_affine = norm_affine
        self.input_dropout = input_dropout
        self.hidden_dropout = hidden_dropout
        self.attention_dropout = attention_dropout
        self.activation_dropout = activation_dropout
        self.post_mlp_dropout = post_mlp_dropout
        self.layer_drop = layer_drop
        self.drop_path = list(drop_path)
        self.original_padding = original_padding
        self.initializer_range = initializer_range
        self.head_pooling = head_pooling
        self.head_norm = head_norm
        self.head_norm_eps = head_norm_eps
        self.head_hidden = head_hidden
        self.head_dropout = head_dropout
        if text is not None:
            vocab_size = self.text["vocab_size"] if vocab_size is None else vocab_size
            pad_token_id = self.text["pad_idx"] if pad_token_id is None else pad_token_id
        self.vocab_size = vocab_size
        super().__init__(pad_token_id=pad_token_id, **kwargs)

    @property
    def inputs_to_logits_ratio(self) -> int:
        """Samples from one frame to the next; pipelines want to know."""
        return math.prod(stride for _, _, stride in self.audio["conv_layers"]) if self.audio else 1

    @property
    def image_size(self) -> int | None:
        """Height and width of images."""
        return self.image["image_size"] if self.image else None


def _complete(defaults: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    if unknown := given.keys() - defaults.keys():
        raise ValueError(f"Unknown settings of a frontend: {', '.join(sorted(unknown))}.")
    section = {**defaults, **given}
    if section["alibi"] is not None:
        section["alibi"] = {**_ALIBI, **section["alibi"]}

    return section
