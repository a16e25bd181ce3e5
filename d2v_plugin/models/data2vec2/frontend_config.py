"""The configuration of the parts around the shared Transformer: frontends, their biases, decoders."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from d2v_plugin.core.ranges import Probability, Range
from d2v_plugin.core.validation import Checked
from d2v_plugin.models.patches import PatchConfig
from d2v_plugin.models.ranges import Count, Factor, Length, Ratio, Size, TokenId
from d2v_plugin.models.spectrograms import SpectrogramConfig
from d2v_plugin.models.waveforms import WaveformConfig


@dataclass(kw_only=True)
class DecoderConfig(Checked):
    """The convolutional decoder that predicts the teacher's representations (data2vec 2.0, section 3.2)."""

    dim: Size = 384
    """Channels of the convolutions."""

    num_groups: Size = 16
    """Groups of the convolutions; must divide ``dim`` and the model's ``dim``."""

    kernel_size: Size = 5
    """Kernel size, in tokens; squared for images."""

    num_layers: Count = 5
    """Number of convolutions."""

    input_dropout: Probability = 0.1
    """Dropout on the encoder output before the mask tokens are put in."""

    residual: bool = True
    """Add the input of a convolution to its output where the numbers of channels agree."""

    projection_layers: Count = 1
    """Linear layers after the convolutions; with more than one, GELU in between."""

    projection_ratio: Ratio = 2.0
    """Width of the hidden projection layers as a multiple of ``dim``; only conversions of foreign checkpoints set it."""


@dataclass(kw_only=True)
class AlibiConfig(Checked):
    """Symmetric linear attention biases: -slope of the head x distance of the tokens x scale."""

    initial_scale: Annotated[float, Range(">= -1e6, <= 1e6")] = 1.0
    """Start of the scale; values below 0 act as 0. Only conversions of foreign checkpoints set it."""

    learned_scale: bool = True
    """Train the scale."""

    per_head: bool = True
    """One scale per attention head, otherwise one for all."""

    per_layer: bool = False
    """One scale per layer, otherwise all layers share it (and the bias is built once); only conversions of foreign checkpoints
    set it."""

    distance: Literal["manhattan", "euclidean", "sequential"] = "manhattan"
    """Distance of two patches of an image, ``sequential`` as if they were a sequence, row by row; for sequences all are the same.
    Only conversions of foreign checkpoints set it."""

    num_heads: Size | None = None
    """How many attention heads have a bias, the first ones; None = all. Only conversions of foreign checkpoints set it."""

    in_kernel: bool = False
    """On a GPU compute the bias inside of the attention kernel (FlexAttention), so that no matrix of it exists. Needs
    ``attention_dropout: 0``. On a CPU, and where algorithms must be deterministic, the bias is built all the same."""


@dataclass(kw_only=True)
class FrontendConfig(Checked):
    """Settings of the frontends of all modalities."""

    prenet_depth: Count = 0
    """Transformer blocks of this modality alone, below the shared ones; never a target."""

    prenet_layer_drop: Probability = 0.0
    """Probability of skipping a prenet block in training."""

    prenet_dropout: Probability = 0.0
    """Dropout between the norm of the frontend's output and the prenet."""

    prenet_drop_path: tuple[Probability, Probability] = (0.0, 0.0)
    """Stochastic depth of the first and the last prenet block; linear in between."""

    num_extra_tokens: Annotated[int, Range(">= 0, <= 65,536")] = 0
    """Learned tokens before the sequence; the last is the CLS token."""

    init_extra_tokens_zero: bool = True
    """Start the first extra token from zero, otherwise at random as the rest."""

    extra_tokens_std: Factor = 1.0
    """Standard deviation with which extra tokens start; MAE's CLS token has 0.02."""

    local_grad_scale: Factor = 1.0
    """Factor of the gradient that reaches the local encoder; 0 freezes it without computing any."""

    alibi: AlibiConfig | None = None
    """Attention biases by distance; None = none."""

    decoder: DecoderConfig | None = field(default_factory=DecoderConfig)
    """The decoder of this modality; None = the model predicts nothing (or through the shared decoder alone)."""


@dataclass(kw_only=True)
class AudioFrontendConfig(WaveformConfig, FrontendConfig):
    """Waveforms: strided convolutions, then relative positions by convolution."""

    position_pre_norm: bool = False
    """Layer norm before the position convolutions; only conversions of foreign checkpoints set it."""


@dataclass(kw_only=True)
class ImageFrontendConfig(PatchConfig, FrontendConfig):
    """Square images cut into square patches, with fixed 2-D sine-cosine positions."""

    embed_dim: Size | None = None
    """Output channels of the patch embedding; if different from the model's ``dim``, a linear layer follows. Only
    conversions of foreign checkpoints set it."""

    fixed_positions: bool = True
    """Add sine-cosine positions to the patches; only conversions of foreign checkpoints set it."""


@dataclass(kw_only=True)
class SpectrogramFrontendConfig(SpectrogramConfig, FrontendConfig):
    """Recordings as log-mel spectrograms, cut into square patches (EAT, arXiv 2401.03497)."""


@dataclass(kw_only=True)
class TextFrontendConfig(FrontendConfig):
    """Token ids with learned positions."""

    vocab_size: Annotated[int, Range(">= 1, <= 4,194,304")] = 50265
    """Number of token embeddings (50,260 of GPT-2's BPE, four special ones and ``<mask>``)."""

    pad_idx: TokenId = 1
    """Token id of padding; its embedding is and stays zero."""

    max_positions: Length = 512
    """Longest sequence, in tokens."""

    position_scale: Factor = 1.0
    """Factor of the position embeddings; 1 = as the original. With 0.1 positions begin as a small part of a token and change
    slowly, so that targets are not mostly positions, which anyone can predict (recipes/study/starting.md)."""

    dropout: Probability = 0.1
    """Dropout after the norm of the embeddings."""
