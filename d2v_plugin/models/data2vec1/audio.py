"""Speech: wav2vec 2.0's convolutions, then a Transformer with relative positions by convolution.

Differences from fairseq's ``data2vec_audio``: padded frames are zero before *every* position convolution, not only before the
first (``original_padding`` restores it); the sequence is not padded to an even length, which changes nothing.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from typing_extensions import override

from d2v_plugin.core.batch import Modality
from d2v_plugin.layers.convolution import convolve_blocks
from d2v_plugin.layers.dropout import Dropout
from d2v_plugin.layers.gradients import scale_gradient
from d2v_plugin.models.base import LocalFeatures
from d2v_plugin.models.data2vec1.base import Data2Vec1Model, Encoder, EncoderInput, attention_mask
from d2v_plugin.models.data2vec1.blocks import build_sequence_blocks
from d2v_plugin.models.data2vec1.config import AudioConfig, Data2Vec1ModelConfig
from d2v_plugin.models.waveforms import WaveformEncoder, build_position_blocks, count_frames, mark_padded_frames


class Data2VecAudioModel(Data2Vec1Model):
    """(N, T), or (N, T, C) of several channels -> (N, S, D), 50 frames a second with the standard convolutions at 16 kHz."""

    frontend_modules = ("feature_extractor",)
    prediction_modules = head_modules = ("final_proj", "mask_emb")
    local_modules = ("feature_extractor", "layer_norm", "post_extract_proj")

    def __init__(self, config: Data2Vec1ModelConfig, audio: AudioConfig) -> None:
        super().__init__(config)
        self.conv_layers = audio.conv_layers
        self.local_grad_scale = audio.local_grad_scale
        num_channels = audio.conv_layers[-1][0]
        self.feature_extractor = WaveformEncoder(audio)
        self.layer_norm = nn.LayerNorm(num_channels, eps=config.norm_eps)
        self.post_extract_proj = nn.Linear(num_channels, config.dim)
        self.input_dropout = Dropout(audio.input_dropout)
        self.mask_emb = nn.Parameter(torch.empty(config.dim))
        self.encoder = AudioEncoder(config, audio)
        self.final_proj = nn.Linear(config.dim, config.dim) if config.head_layers > 0 else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the parameters that no child module owns."""
        nn.init.uniform_(self.mask_emb)

    @override
    def embed_tokens(self, inputs: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        encode = partial(self.feature_extractor, padding_mask=None if self.config.original_padding else padding_mask)
        x = scale_gradient(encode, inputs, self.local_grad_scale)
        return self.post_extract_proj(self.layer_norm(x))  # type: ignore[no-any-return]

    @override
    def mask_local(self, local: LocalFeatures, mask: Tensor | None, fill: Tensor | None = None) -> LocalFeatures:
        x = self.input_dropout(local.x)
        if mask is not None:
            x = torch.where(mask.unsqueeze(-1), self.mask_emb.to(x.dtype), x)
        return replace(local, x=x)

    @override
    def output_length(self, input_length: int, modality: Modality | None = None) -> int:
        return max(count_frames(input_length, self.conv_layers), 0)

    @override
    def downsample_padding(self, padding_mask: Tensor | None, length: int) -> Tensor | None:
        return mark_padded_frames(padding_mask, length, self.conv_layers)


class AudioEncoder(Encoder):
    """Relative positions, norm and Transformer."""

    position_modules = ("pos_conv",)

    def __init__(self, config: Data2Vec1ModelConfig, audio: AudioConfig) -> None:
        super().__init__()
        self.pos_conv = nn.Sequential(*build_position_blocks(audio, config.dim))
        self.layer_norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.dropout = Dropout(config.dropout)
        self.layers = build_sequence_blocks(config)
        self.norm_first = config.norm_first
        self.original_padding = config.original_padding

    @override
    def prepare(self, local: LocalFeatures, context: Tensor | None = None) -> EncoderInput:
        x, padding_mask = local.x, local.padding_mask
        if padding_mask is not None:
            x = x.masked_fill(padding_mask.unsqueeze(-1), 0.0)
        positions = convolve_blocks(x, self.pos_conv, None if self.original_padding else padding_mask)

        return EncoderInput(x + positions, attention_mask(padding_mask, context))

    @override
    def start(self, x: Tensor) -> Tensor:
        return self.dropout(x if self.norm_first else self.layer_norm(x))  # type: ignore[no-any-return]

    @override
    def finish(self, x: Tensor) -> Tensor:
        return self.layer_norm(x) if self.norm_first else x
