"""Spectrograms: log-mel frames of the waveform, then patches and fixed 2-D positions as of an image of one channel (EAT)."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from d2v_plugin.core.batch import Grid, Modality
from d2v_plugin.layers.gradients import scale_gradient
from d2v_plugin.models.base import LocalFeatures
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.models.data2vec2.frontend_config import SpectrogramFrontendConfig
from d2v_plugin.models.data2vec2.frontends.base import Frontend
from d2v_plugin.models.data2vec2.frontends.image import SinusoidalPositions
from d2v_plugin.models.patches import PatchConfig, PatchEmbedding
from d2v_plugin.models.spectrograms import mark_padded_tokens, normalized_log_mel


class SpectrogramFrontend(Frontend):
    """Waveforms (N, T) -> (N, S, D): patches from the first frame to the last, in each row from the lowest band up."""

    modality = Modality.AUDIO
    num_spatial_dims = 2
    project_features = None
    local_encoder: PatchEmbedding

    def __init__(self, config: Data2VecConfig, spectrogram: SpectrogramFrontendConfig) -> None:
        super().__init__(config, spectrogram, context_norm=True)
        self.config = spectrogram
        patches = PatchConfig(image_size=spectrogram.patch_size, patch_size=spectrogram.patch_size, num_channels=1)
        self.local_encoder = PatchEmbedding(patches, config.dim, name="proj")
        self.fixed_positional_encoder = SinusoidalPositions((spectrogram.rows, spectrogram.columns), config.dim)

    @override
    def freeze_constants(self) -> None:
        super().freeze_constants()
        self.fixed_positional_encoder.positions.requires_grad_(False)

    def compute_spectrogram(self, waveforms: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """(N, T) -> (N, F, B), normalised; padding_mask (N, T)."""
        return normalized_log_mel(waveforms, padding_mask, self.config)

    @override
    def encode_local(self, inputs: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """:param inputs: waveforms (N, T), or what :meth:`compute_spectrogram` made of them, (N, F, B)."""
        if inputs.dim() == 2:
            inputs = self.compute_spectrogram(inputs, padding_mask)
        # One channel: (N, F, B) -> (N, 1, F, B)
        image = inputs.unsqueeze(1).to(self.local_encoder["proj"].get_parameter("weight").dtype)
        return scale_gradient(self.local_encoder, image, self.local_grad_scale)

    @override
    def output_length(self, input_length: int) -> int:
        return max(self.config.count_tokens(input_length), 0)

    @override
    def find_grid(self, inputs: Tensor) -> Grid:
        size, columns = self.config.patch_size, self.config.columns
        rows = inputs.size(1) // size if inputs.dim() == 3 else self.output_length(inputs.size(1)) // columns
        return rows, columns

    @override
    def _downsample_padding(self, padding_mask: Tensor | None, length: int) -> Tensor | None:
        return mark_padded_tokens(padding_mask, length, self.config)

    @override
    def _add_positions(self, local: LocalFeatures) -> Tensor:
        # Those of the first rows: unlike images, recordings are not stretched.
        return local.x + self.fixed_positional_encoder.positions[:, : local.x.size(1)]
