"""The configuration of a data2vec 2.0 model: frontends, the shared Transformer, decoders."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Literal

from typing_extensions import Self, override

from d2v_plugin.models.base import EncoderConfig
from d2v_plugin.models.patches import PatchConfig, check_patches
from d2v_plugin.models.ranges import check_parameters
from d2v_plugin.models.tokens import check_ids
from d2v_plugin.models.waveforms import WaveformConfig, check_waveforms


@dataclass(kw_only=True)
class DecoderConfig:
    """The convolutional decoder that predicts the teacher's representations (data2vec 2.0, section 3.2)."""

    dim: int = 384
    """Channels of the convolutions."""

    num_groups: int = 16
    """Groups of the convolutions; must divide ``dim`` and the model's ``dim``."""

    kernel_size: int = 5
    """Kernel size, in tokens; squared for images."""

    num_layers: int = 5
    """Number of convolutions."""

    input_dropout: float = 0.1
    """Dropout on the encoder output before the mask tokens are put in."""

    residual: bool = True
    """Add the input of a convolution to its output where the numbers of channels agree."""

    projection_layers: int = 1
    """Linear layers after the convolutions; with more than one, GELU in between."""

    projection_ratio: float = 2.0
    """Width of the hidden projection layers as a multiple of ``dim``; only conversions of foreign checkpoints set it."""


@dataclass(kw_only=True)
class AlibiConfig:
    """Symmetric linear attention biases: -slope of the head x distance of the tokens x scale."""

    initial_scale: float = 1.0
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

    num_heads: int | None = None
    """How many attention heads have a bias, the first ones; None = all. Only conversions of foreign checkpoints set it."""

    in_kernel: bool = False
    """On a GPU compute the bias inside of the attention kernel (FlexAttention), so that no matrix of it exists. Needs
    ``attention_dropout: 0``. On a CPU, and where algorithms must be deterministic, the bias is built all the same."""


@dataclass(kw_only=True)
class FrontendConfig:
    """Settings of the frontends of all modalities."""

    prenet_depth: int = 0
    """Transformer blocks of this modality alone, below the shared ones; never a target."""

    prenet_layer_drop: float = 0.0
    """Probability of skipping a prenet block in training."""

    prenet_dropout: float = 0.0
    """Dropout between the norm of the frontend's output and the prenet."""

    prenet_drop_path: tuple[float, float] = (0.0, 0.0)
    """Stochastic depth of the first and the last prenet block; linear in between."""

    num_extra_tokens: int = 0
    """Learned tokens before the sequence; the last is the CLS token."""

    init_extra_tokens_zero: bool = True
    """Start the first extra token from zero, otherwise at random as the rest."""

    extra_tokens_std: float = 1.0
    """Standard deviation with which extra tokens start; MAE's CLS token has 0.02."""

    local_grad_scale: float = 1.0
    """Factor of the gradient that reaches the local encoder; 0 freezes it without computing any."""

    alibi: AlibiConfig | None = None
    """Attention biases by distance; None = none."""

    decoder: DecoderConfig | None = field(default_factory=DecoderConfig)
    """The decoder of this modality; None = the model predicts nothing (or through the shared decoder alone)."""


@dataclass(kw_only=True)
class AudioFrontendConfig(WaveformConfig, FrontendConfig):
    """Waveforms at 16 kHz: strided convolutions, then relative positions by convolution."""

    position_pre_norm: bool = False
    """Layer norm before the position convolutions; only conversions of foreign checkpoints set it."""


@dataclass(kw_only=True)
class ImageFrontendConfig(PatchConfig, FrontendConfig):
    """Square images cut into square patches, with fixed 2-D sine-cosine positions."""

    embed_dim: int | None = None
    """Output channels of the patch embedding; if different from the model's ``dim``, a linear layer follows. Only
    conversions of foreign checkpoints set it."""

    fixed_positions: bool = True
    """Add sine-cosine positions to the patches; only conversions of foreign checkpoints set it."""


@dataclass(kw_only=True)
class TextFrontendConfig(FrontendConfig):
    """Token ids with learned positions."""

    vocab_size: int = 50265
    """Number of token embeddings (50,260 of GPT-2's BPE, four special ones and ``<mask>``)."""

    pad_idx: int = 1
    """Token id of padding; its embedding is and stays zero."""

    max_positions: int = 512
    """Longest sequence, in tokens."""

    position_scale: float = 1.0
    """Factor of the position embeddings; 1 = as the original. With 0.1 positions begin as a small part of a token and change
    slowly, so that targets are not mostly positions, which anyone can predict (recipes/study/starting.md)."""

    dropout: float = 0.1
    """Dropout after the norm of the embeddings."""


@dataclass(kw_only=True)
class Data2VecConfig(EncoderConfig):
    """A model: one frontend or several over one shared Transformer."""

    audio: AudioFrontendConfig | None = None
    """Frontend of waveforms."""

    image: ImageFrontendConfig | None = None
    """Frontend of images."""

    text: TextFrontendConfig | None = None
    """Frontend of token ids."""

    dim: int = 768
    """Width of the Transformer."""

    depth: int = 12
    """Number of shared Transformer blocks."""

    num_heads: int = 12
    """Attention heads; must divide ``dim``."""

    mlp_ratio: float = 4.0
    """Hidden width of the feed-forward layers as a multiple of ``dim``."""

    norm_first: bool = False
    """Pre-norm blocks. All published models are post-norm; the original's pre-norm loses the residual, ours does not."""

    norm_eps: float = 1e-5
    """Epsilon of the norms in the blocks and of the norm of the frontend's output; all others use 1e-5."""

    norm_affine: bool = True
    """Learn scale and bias of those norms; only conversions of foreign checkpoints set it."""

    input_dropout: float = 0.0
    """Dropout between frontend and shared blocks."""

    dropout: float = 0.1
    """Dropout after the attention's output projection."""

    attention_dropout: float = 0.1
    """Dropout of the attention weights."""

    activation_dropout: float = 0.0
    """Dropout inside the feed-forward layers."""

    post_mlp_dropout: float = 0.1
    """Dropout between the feed-forward output, which is the teacher's target, and the residual."""

    layer_drop: float = 0.0
    """Probability of skipping a block in training."""

    drop_path: tuple[float, float] = (0.0, 0.0)
    """Stochastic depth of the first and the last block; linear in between."""

    shared_decoder: DecoderConfig | None = None
    """A 1-D decoder for all modalities beside those of the frontends; only conversions of foreign checkpoints set it."""

    mae_init: bool = False
    """Initialise linear layers with Xavier's uniform distribution, as MAE does, instead of N(0, 0.02)."""

    prediction_init_scale: float = 1.0
    """Factor of the start of the last layer that predicts; 1 = as the original. With 0 a student begins at the mean of the
    normalised targets, and has no reason to quiet its noise by making local features constant (recipes/study/starting.md)."""

    original_padding: bool = False
    """Reproduce the original's handling of padding, which lets padded positions change valid ones (README, differences)."""

    @override
    def check_together(self) -> Iterator[tuple[bool, str]]:
        yield not self.frontends, "One of `audio`, `image` and `text` must be configured, but all are None."
        yield self.dim % self.num_heads != 0, f"`num_heads` must divide `dim` ({self.dim}), but is {self.num_heads}."
        width = 4 * self.dim + 2 * self.mlp_ratio * self.dim
        yield from check_parameters(self.depth * self.dim * width, "the blocks", "`depth`, `dim` and `mlp_ratio`")
        for modality, frontend in self.frontends.items():
            yield from self._check_frontend(modality.value, frontend)
        if self.shared_decoder is not None:
            yield from self._check_decoder("shared_decoder", self.shared_decoder)

    def _check_frontend(self, name: str, frontend: FrontendConfig) -> Iterator[tuple[bool, str]]:
        if frontend.alibi is not None and frontend.alibi.num_heads is not None:
            biased = frontend.alibi.num_heads
            yield (
                biased > self.num_heads,
                f"`{name}.alibi.num_heads` must be between 1 and `num_heads` ({self.num_heads}), but is {biased}.",
            )
        yield (
            frontend.alibi is not None and frontend.alibi.in_kernel and self.attention_dropout > 0.0,
            f"`{name}.alibi.in_kernel` needs `attention_dropout: 0`, but it is {self.attention_dropout}.",
        )
        if frontend.decoder is not None:
            yield from self._check_decoder(f"{name}.decoder", frontend.decoder)
        if isinstance(frontend, ImageFrontendConfig):
            yield from check_patches(frontend)
        if isinstance(frontend, AudioFrontendConfig):
            yield from check_waveforms(frontend, self.dim)
        if isinstance(frontend, TextFrontendConfig):
            yield from check_ids(frontend)

    def _check_decoder(self, name: str, decoder: DecoderConfig) -> Iterator[tuple[bool, str]]:
        count = decoder.num_layers * max(self.dim, decoder.dim) * decoder.dim * decoder.kernel_size**2 / decoder.num_groups
        yield from check_parameters(count, "the decoder", f"The settings of `{name}`")
        for place, width in ((f"{name}.dim", decoder.dim), ("dim", self.dim)):
            yield (
                decoder.num_layers > 0 and width % decoder.num_groups != 0,
                f"`{name}.num_groups` must divide `{place}` ({width}), but is {decoder.num_groups}.",
            )

    @override
    def count_layers(self) -> int:
        frontends: list[FrontendConfig] = list(self.frontends.values())
        decoders = [self.shared_decoder, *(frontend.decoder for frontend in frontends)]

        return (
            self.depth
            + sum(frontend.prenet_depth for frontend in frontends)
            + (0 if self.audio is None else self.audio.num_convolutions)
            + sum(decoder.num_layers + decoder.projection_layers for decoder in decoders if decoder is not None)
        )

    @override
    def without_prediction(self) -> Self:
        config = deepcopy(self)
        config.shared_decoder = None
        for frontend in config.frontends.values():
            frontend.decoder = None

        return config
