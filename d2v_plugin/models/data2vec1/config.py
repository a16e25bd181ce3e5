"""The configuration of a data2vec 1.0 model: one modality, one Transformer over the full sequence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from typing_extensions import Self, override

from d2v_plugin.core.batch import Modality
from d2v_plugin.core.ranges import Probability, Range
from d2v_plugin.core.validation import Checked
from d2v_plugin.models.base import EncoderConfig
from d2v_plugin.models.patches import PatchConfig, check_patches
from d2v_plugin.models.ranges import Count, Depth, Epsilon, Factor, Length, Size, TokenId, check_parameters
from d2v_plugin.models.tokens import check_ids
from d2v_plugin.models.waveforms import WaveformConfig, check_waveforms


@dataclass(kw_only=True)
class AudioConfig(WaveformConfig):
    """Waveforms: the convolutions of wav2vec 2.0, relative positions by convolution, post-norm blocks."""

    local_grad_scale: Factor = 1.0
    """Factor of the gradient that reaches the convolutions over the waveform; 0 freezes them without computing any."""

    input_dropout: Probability = 0.0
    """Dropout on the projected features that the student sees; the teacher gets them without."""


@dataclass(kw_only=True)
class TextConfig(Checked):
    """Token ids with learned positions, post-norm blocks."""

    vocab_size: Annotated[int, Range(">= 1, <= 4,194,304")] = 50265
    """Number of token embeddings (50,260 of GPT-2's BPE, four special ones and ``<mask>``)."""

    pad_idx: TokenId = 1
    """Token id of padding."""

    mask_idx: TokenId | None = None
    """Token id of ``<mask>``; None = the last one."""

    num_special_tokens: Annotated[int, Range(">= 0, <= 65,536")] = 4
    """Ids below this are special (``<s>``, ``<pad>``, ``</s>``, ``<unk>``) and never put in place of a masked token."""

    max_positions: Length = 512
    """Longest sequence, in tokens."""

    position_scale: Factor = 1.0
    """Factor of the position embeddings; 1 = as the original. With 0.1 positions begin as a small part of a token and change
    slowly, so that targets are not mostly positions, which anyone can predict (recipes/study/starting.md)."""


@dataclass(kw_only=True)
class ImageConfig(PatchConfig):
    """Square images cut into square patches, a CLS token, relative positions, pre-norm blocks with LayerScale (BEiT)."""

    layer_scale: Factor | None = 1e-4
    """Start of the learned scales of the residual branches; None = there are none."""

    relative_positions: Literal["shared", "per_layer", "none"] = "shared"
    """One table of attention biases by relative position for all blocks, one for each (BEiT's fine-tuned models), or none."""

    absolute_positions: bool = False
    """Learned positions, added to the patches (ViT, MAE). Only conversions of foreign checkpoints set it."""

    final_norm: bool = True
    """Norm after the last block; fine-tuned models that average the patches have none."""


@dataclass(kw_only=True)
class Data2Vec1ModelConfig(EncoderConfig):
    """A model of one modality: exactly one of ``audio``, ``text`` and ``image`` must be given."""

    audio: AudioConfig | None = None
    """Speech model."""

    text: TextConfig | None = None
    """Text model."""

    image: ImageConfig | None = None
    """Vision model."""

    dim: Size = 768
    """Width of the Transformer."""

    ffn_dim: Size = 3072
    """Hidden width of the feed-forward layers."""

    depth: Depth = 12
    """Number of Transformer blocks."""

    num_heads: Size = 12
    """Attention heads; must divide ``dim``."""

    norm_first: bool = False
    """Audio: pre-norm blocks and a norm after the last one (the "stable layer norm" of wav2vec 2.0's and HuBERT's large models).
    Only conversions of foreign checkpoints set it."""

    norm_eps: Epsilon = 1e-5
    """Epsilon of the norms, except those of the convolutions over the waveform (1e-5)."""

    dropout: Probability = 0.1
    """Dropout on the embeddings (audio, text) and after attention and feed-forward layers."""

    attention_dropout: Probability = 0.1
    """Dropout of the attention weights."""

    activation_dropout: Probability = 0.0
    """Dropout inside the feed-forward layers (audio, text)."""

    layer_drop: Probability = 0.0
    """Probability of skipping a block in training (audio, text)."""

    drop_path: Probability = 0.0
    """Stochastic depth of the last block, from 0 at the first, linear in between (images)."""

    head_layers: Count = 1
    """Linear layers of the prediction head; 0 = none, the encoder's output is the prediction. More than one: GELU in between
    and twice the width."""

    prediction_init_scale: Factor = 1.0
    """Factor of the start of the last layer that predicts; 1 = as the original. With 0 a student begins at the mean of the
    normalised targets, and has no reason to quiet its noise by making local features constant (recipes/study/starting.md)."""

    original_padding: bool = False
    """Audio and text: reproduce the original's handling of padding. It sets padded positions to zero once, for audio before the
    first position convolution, so that the *amount* of padding changes the last valid frames, and includes padding in the
    statistics of targets. Ours acts as if nothing followed the sample."""

    @property
    def modality(self) -> Modality:
        """The modality of the model."""
        return next(iter(self.frontends))

    @override
    def check_together(self) -> Iterator[tuple[bool, str]]:
        given = [name for name in ("audio", "text", "image") if getattr(self, name) is not None]

        yield not given, "One of `audio`, `text` and `image` must be configured, but all are None."
        yield len(given) > 1, f"Exactly one of `audio`, `text` and `image` must be given, but {' and '.join(given)} are."
        yield self.dim % self.num_heads != 0, f"`num_heads` must divide `dim` ({self.dim}), but is {self.num_heads}."
        yield self.norm_first and self.audio is None, "`norm_first` must be false, because it is for audio alone."
        yield (
            self.head_layers > 1 and self.text is None,
            f"`head_layers` must be 0 or 1 for audio and images, but is {self.head_layers}.",
        )
        width = 4 * self.dim + 2 * self.ffn_dim
        yield from check_parameters(self.depth * self.dim * width, "the blocks", "`depth`, `dim` and `ffn_dim`")
        if self.image is not None:
            yield from check_patches(self.image)
        if self.audio is not None:
            yield from check_waveforms(self.audio, self.dim)
        if self.text is not None:
            yield from check_ids(self.text)

    @override
    def count_layers(self) -> int:
        return self.depth + self.head_layers + (0 if self.audio is None else self.audio.num_convolutions)

    @override
    def without_prediction(self) -> Self:
        return replace(self, head_layers=0)
