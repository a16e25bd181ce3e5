"""Speech: strided convolutions over the waveform, then relative positions by grouped convolutions."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from typing_extensions import override

from d2v_plugin.core.batch import Modality
from d2v_plugin.core.contracts import Views
from d2v_plugin.layers.convolution import convolve_blocks
from d2v_plugin.layers.gradients import scale_gradient
from d2v_plugin.models.base import LocalFeatures
from d2v_plugin.models.data2vec2.config import Data2VecConfig
from d2v_plugin.models.data2vec2.frontend_config import AudioFrontendConfig
from d2v_plugin.models.data2vec2.frontends.base import Frontend, select_tokens
from d2v_plugin.models.waveforms import WaveformEncoder, build_position_blocks, count_frames, mark_padded_frames


class AudioFrontend(Frontend):
    """(N, T), or (N, T, C) of several channels -> (N, S, D), 50 frames a second with the standard convolutions at 16 kHz."""

    modality = Modality.AUDIO

    def __init__(self, config: Data2VecConfig, audio: AudioFrontendConfig) -> None:
        super().__init__(config, audio, context_norm=True)
        self.conv_layers = audio.conv_layers
        num_channels = audio.conv_layers[-1][0]
        self.local_encoder = WaveformEncoder(audio)
        self.project_features = nn.Sequential(nn.Identity(), nn.LayerNorm(num_channels), nn.Linear(num_channels, config.dim))
        self.relative_positional_encoder = ConvPositions(config.dim, audio)

    @override
    def encode_local(self, inputs: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        assert self.local_encoder is not None
        encode = partial(self.local_encoder, padding_mask=None if self.original_padding else padding_mask)
        return scale_gradient(encode, inputs, self.local_grad_scale)

    @override
    def output_length(self, input_length: int) -> int:
        return max(count_frames(input_length, self.conv_layers), 0)

    @override
    def _downsample_padding(self, padding_mask: Tensor | None, length: int) -> Tensor | None:
        return mark_padded_frames(padding_mask, length, self.conv_layers)

    @override
    def _add_positions(self, local: LocalFeatures) -> Tensor:
        padding_mask = None if self.original_padding else local.padding_mask
        return local.x + self.relative_positional_encoder(local.x, padding_mask)  # type: ignore[no-any-return]

    @override
    def _keep_tokens(self, local: LocalFeatures, views: Views) -> Tensor:
        # Positions see the full sequence, with zeros where it is masked: (N, S, D) -> (N·M, S, D)
        x = local.x.repeat_interleave(views.num_views, dim=0).masked_fill(views.mask.unsqueeze(-1), 0.0)
        positions = self.relative_positional_encoder(x, None if self.original_padding else views.padding_mask)

        return select_tokens(local.x, views.kept) + select_tokens(positions, views.kept)


class ConvPositions(nn.Module):
    """Relative positions: a stack of grouped convolutions over the full sequence (data2vec, section 3.1)."""

    def __init__(self, dim: int, audio: AudioFrontendConfig) -> None:
        super().__init__()
        # Numbered as in the original, where a transposition is number 0.
        blocks = {str(i): block for i, block in enumerate(build_position_blocks(audio, dim), 1)}
        self.pre_norm = audio.position_pre_norm
        if audio.position_pre_norm:
            self.add_module("0", nn.LayerNorm(dim))
            self.add_module("1", nn.ModuleDict(blocks))
        else:
            for name, block in blocks.items():
                self.add_module(name, block)

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """
        :param x: (R, S, D)
        :param padding_mask: (R, S); padded positions act as the zero padding behind a shorter sequence.
        """
        blocks = list(self.children())
        if self.pre_norm:
            norm, stack = blocks
            x, blocks = norm(x), list(stack.children())
        return convolve_blocks(x, blocks, padding_mask)
