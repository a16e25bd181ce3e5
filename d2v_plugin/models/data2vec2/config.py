"""The configuration of a data2vec 2.0 model: frontends over the shared Transformer."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from typing_extensions import Self, override

from d2v_plugin.core.batch import Modality
from d2v_plugin.core.ranges import Probability
from d2v_plugin.models.base import EncoderConfig
from d2v_plugin.models.data2vec2.frontend_config import (
    AudioFrontendConfig,
    DecoderConfig,
    FrontendConfig,
    ImageFrontendConfig,
    SpectrogramFrontendConfig,
    TextFrontendConfig,
)
from d2v_plugin.models.patches import check_patches
from d2v_plugin.models.ranges import Depth, Epsilon, Factor, Ratio, Size, check_parameters
from d2v_plugin.models.spectrograms import check_spectrograms
from d2v_plugin.models.tokens import check_ids
from d2v_plugin.models.waveforms import check_waveforms


@dataclass(kw_only=True)
class Data2VecConfig(EncoderConfig):
    """A model: one frontend or several over one shared Transformer."""

    audio: AudioFrontendConfig | None = None
    """Frontend of waveforms."""

    spectrogram: SpectrogramFrontendConfig | None = None
    """Frontend of recordings as spectrograms, instead of ``audio``."""

    image: ImageFrontendConfig | None = None
    """Frontend of images."""

    text: TextFrontendConfig | None = None
    """Frontend of token ids."""

    dim: Size = 768
    """Width of the Transformer."""

    depth: Depth = 12
    """Number of shared Transformer blocks."""

    num_heads: Size = 12
    """Attention heads; must divide ``dim``."""

    mlp_ratio: Ratio = 4.0
    """Hidden width of the feed-forward layers as a multiple of ``dim``."""

    norm_first: bool = False
    """Pre-norm blocks. All published models are post-norm; the original's pre-norm loses the residual, ours does not."""

    norm_eps: Epsilon = 1e-5
    """Epsilon of the norms in the blocks and of the norm of the frontend's output; all others use 1e-5."""

    norm_affine: bool = True
    """Learn scale and bias of those norms; only conversions of foreign checkpoints set it."""

    input_dropout: Probability = 0.0
    """Dropout between frontend and shared blocks."""

    dropout: Probability = 0.1
    """Dropout after the attention's output projection."""

    attention_dropout: Probability = 0.1
    """Dropout of the attention weights."""

    activation_dropout: Probability = 0.0
    """Dropout inside the feed-forward layers."""

    post_mlp_dropout: Probability = 0.1
    """Dropout between the feed-forward output, which is the teacher's target, and the residual."""

    layer_drop: Probability = 0.0
    """Probability of skipping a block in training."""

    drop_path: tuple[Probability, Probability] = (0.0, 0.0)
    """Stochastic depth of the first and the last block; linear in between."""

    shared_decoder: DecoderConfig | None = None
    """A 1-D decoder for all modalities beside those of the frontends; only conversions of foreign checkpoints set it."""

    mae_init: bool = False
    """Initialise linear layers with Xavier's uniform distribution, as MAE does, instead of N(0, 0.02)."""

    prediction_init_scale: Factor = 1.0
    """Factor of the start of the last layer that predicts; 1 = as the original. With 0 a student begins at the mean of the
    normalised targets, and has no reason to quiet its noise by making local features constant (recipes/study/starting.md)."""

    original_padding: bool = False
    """Reproduce the original's handling of padding, which lets padded positions change valid ones (README, differences)."""

    @override
    def check_together(self) -> Iterator[tuple[bool, str]]:
        names = "`audio`, `spectrogram`, `image` and `text`"
        yield not self.frontends, f"One of {names} must be configured, but all are None."
        yield (
            None not in (self.audio, self.spectrogram),
            "`audio` and `spectrogram` must not be configured together: set one to null.",
        )
        yield self.dim % self.num_heads != 0, f"`num_heads` must divide `dim` ({self.dim}), but is {self.num_heads}."
        width = 4 * self.dim + 2 * self.mlp_ratio * self.dim
        yield from check_parameters(self.depth * self.dim * width, "the blocks", "`depth`, `dim` and `mlp_ratio`")
        for modality, frontend in self.frontends.items():
            is_spectrogram = isinstance(frontend, SpectrogramFrontendConfig)
            yield from self._check_frontend("spectrogram" if is_spectrogram else modality.value, frontend)
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
        if isinstance(frontend, SpectrogramFrontendConfig):
            yield from check_spectrograms(frontend)
            yield frontend.alibi is not None, "`spectrogram.alibi` must be null: patches have fixed positions."
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
    def _section(self, modality: Modality) -> Any:
        is_spectrogram = modality is Modality.AUDIO and self.audio is None
        return self.spectrogram if is_spectrogram else super()._section(modality)

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
