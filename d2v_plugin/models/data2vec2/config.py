"""The configuration of a data2vec 2.0 model: frontends, the shared Transformer, decoders."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from d2v_plugin.core.batch import Modality


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
    """Width of the hidden projection layers as a multiple of ``dim``."""


@dataclass(kw_only=True)
class AlibiConfig:
    """Symmetric linear attention biases: -slope of the head x distance of the tokens x scale."""

    initial_scale: float = 1.0
    """What the scale starts from; values below 0 act as 0."""

    learned_scale: bool = True
    """Train the scale."""

    per_head: bool = True
    """One scale per attention head, otherwise one for all."""

    per_layer: bool = False
    """One scale per layer, otherwise all layers share it (and the bias is built once)."""

    distance: Literal["manhattan", "euclidean"] = "manhattan"
    """Distance of two patches of an image; for sequences both are the same."""


@dataclass(kw_only=True)
class FrontendConfig:
    """What the frontends of all modalities have."""

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
    """Start the first extra token from zero, otherwise from N(0, 1) as the rest."""

    local_grad_scale: float = 1.0
    """Factor of the gradient that reaches the local encoder; 0 freezes it without computing any."""

    alibi: AlibiConfig | None = None
    """Attention biases by distance; None = none."""

    decoder: DecoderConfig | None = field(default_factory=DecoderConfig)
    """The decoder of this modality; None = the model predicts nothing (or through the shared decoder alone)."""


@dataclass(kw_only=True)
class AudioConfig(FrontendConfig):
    """Waveforms at 16 kHz: strided convolutions, then relative positions by convolution."""

    conv_layers: list[tuple[int, int, int]] = field(
        default_factory=lambda: [(512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2]
    )
    """(channels, kernel size, stride) of each convolution, in samples and frames."""

    conv_norm: Literal["layer_norm", "group_norm"] = "layer_norm"
    """Layer norm after every convolution, or group norm after the first only."""

    position_width: int = 95
    """Receptive field of the position convolutions together, in frames."""

    position_groups: int = 16
    """Groups of the position convolutions."""

    position_depth: int = 5
    """Number of position convolutions; each has kernel size max(3, position_width // position_depth)."""

    position_pre_norm: bool = False
    """Layer norm before the position convolutions."""


@dataclass(kw_only=True)
class ImageConfig(FrontendConfig):
    """Square images cut into square patches, with fixed 2-D sine-cosine positions."""

    image_size: int = 224
    """Height and width, in pixels."""

    patch_size: int = 16
    """Height and width of a patch, in pixels."""

    num_channels: int = 3
    """Channels of the images."""

    embed_dim: int | None = None
    """Output channels of the patch embedding; if different from the model's ``dim``, a linear layer follows."""

    fixed_positions: bool = True
    """Add sine-cosine positions to the patches."""


@dataclass(kw_only=True)
class TextConfig(FrontendConfig):
    """Token ids with learned positions."""

    vocab_size: int = 50265
    """Number of token embeddings (50,260 of GPT-2's BPE, four special ones and ``<mask>``)."""

    pad_idx: int = 1
    """Token id of padding; its embedding is and stays zero."""

    max_positions: int = 512
    """Longest sequence, in tokens."""

    dropout: float = 0.1
    """Dropout after the norm of the embeddings."""


@dataclass(kw_only=True)
class Data2VecConfig:
    """A model: one frontend or several over one shared Transformer."""

    audio: AudioConfig | None = None
    """Frontend of waveforms."""

    image: ImageConfig | None = None
    """Frontend of images."""

    text: TextConfig | None = None
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
    """Learn scale and bias of those norms."""

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
    """A 1-D decoder for all modalities beside those of the frontends."""

    mae_init: bool = False
    """Initialise linear layers with Xavier's uniform distribution instead of N(0, 0.02)."""

    original_padding: bool = False
    """Reproduce the original's handling of padding, which lets padded positions change valid ones (README, differences)."""

    @property
    def frontends(self) -> dict[Modality, AudioConfig | ImageConfig | TextConfig]:
        """The configured frontends, in the original's order."""
        candidates = {Modality.TEXT: self.text, Modality.AUDIO: self.audio, Modality.IMAGE: self.image}

        return {modality: config for modality, config in candidates.items() if config is not None}

    def __post_init__(self) -> None:
        if self.dim % self.num_heads:
            raise ValueError(f"`num_heads` must divide `dim` ({self.dim}), but is {self.num_heads}.")
        if self.image is not None and self.image.image_size % self.image.patch_size:
            raise ValueError(f"`patch_size` must divide `image_size` ({self.image.image_size}), but is {self.image.patch_size}.")
