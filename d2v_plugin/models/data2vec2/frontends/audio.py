"""Speech: strided convolutions over the waveform, then relative positions by grouped convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from d2v_plugin.core.contracts import Views
from d2v_plugin.layers.convolution import ConvBlock, convolve, norm_gelu_convolve
from d2v_plugin.layers.recomputation import norm_gelu
from d2v_plugin.models.data2vec2.config import AudioConfig, Data2VecConfig
from d2v_plugin.models.data2vec2.frontends.base import Frontend, LocalFeatures, select_tokens

LengthT = TypeVar("LengthT", int, Tensor)


class AudioFrontend(Frontend):
    """(N, T) samples at 16 kHz -> (N, S, D), 50 frames a second with the standard convolutions."""

    def __init__(self, config: Data2VecConfig, audio: AudioConfig) -> None:
        super().__init__(config, audio, context_norm=True, num_spatial_dims=1)
        self.conv_layers = audio.conv_layers
        num_channels = audio.conv_layers[-1][0]
        self.local_encoder = WaveformEncoder(audio)
        self.project_features = nn.Sequential(nn.Identity(), nn.LayerNorm(num_channels), nn.Linear(num_channels, config.dim))
        self.relative_positional_encoder = ConvPositions(config.dim, audio)

    @override
    def output_length(self, input_length: int) -> int:
        return max(count_frames(input_length, self.conv_layers), 0)

    @override
    def _encode_local(self, inputs: Tensor) -> Tensor:
        assert self.local_encoder is not None
        if self.output_length(inputs.size(-1)) < 1:
            raise ValueError(f"`inputs` must be long enough for one frame, but has {inputs.size(-1)} samples.")

        return self.local_encoder(inputs)  # type: ignore[no-any-return]

    @override
    def _downsample_padding(self, padding_mask: Tensor | None, length: int) -> Tensor | None:
        return None if padding_mask is None else mark_padded_frames(padding_mask, length, self.conv_layers)

    @override
    def _add_positions(self, x: Tensor, padding_mask: Tensor | None) -> Tensor:
        if self.original_padding:
            padding_mask = None

        return x + self.relative_positional_encoder(x, padding_mask)  # type: ignore[no-any-return]

    @override
    def _keep_tokens(self, local: LocalFeatures, views: Views) -> Tensor:
        # Positions see the full sequence, with zeros where it is masked: (N, S, D) -> (N·M, S, D)
        x = local.x.repeat_interleave(views.num_views, dim=0).masked_fill(views.mask.unsqueeze(-1), 0.0)
        positions = self.relative_positional_encoder(x, None if self.original_padding else views.padding_mask)

        return select_tokens(local.x, views.kept) + select_tokens(positions, views.kept)


def count_frames(num_samples: LengthT, conv_layers: Sequence[tuple[int, int, int]]) -> LengthT:
    """Frames that the convolutions make of so many samples; 0 or less for fewer than one frame needs."""
    for _, kernel_size, stride in conv_layers:
        num_samples = (num_samples - kernel_size) // stride + 1

    return num_samples


def mark_padded_frames(padding_mask: Tensor, num_frames: int, conv_layers: Sequence[tuple[int, int, int]]) -> Tensor:
    """The padding mask at the resolution of the frames: (N, T) -> (N, S)."""
    lengths = count_frames((~padding_mask).sum(dim=-1), conv_layers)

    return torch.arange(num_frames, device=padding_mask.device) >= lengths.unsqueeze(-1)


class WaveformEncoder(nn.Module):
    """The convolutions of wav2vec 2.0 (section 2): (N, T) -> (N, S, C)."""

    def __init__(self, audio: AudioConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        in_channels = 1
        for i, (channels, kernel_size, stride) in enumerate(audio.conv_layers):
            conv = nn.Conv1d(in_channels, channels, kernel_size, stride=stride, bias=False)
            nn.init.kaiming_normal_(conv.weight)
            layers.append(WaveformLayer(conv, _build_norm(audio.conv_norm, channels, first=i == 0)))
            in_channels = channels
        self.conv_layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        first, last = self.conv_layers[0]["0"], self.conv_layers[-1]["2"]  # type: ignore[index]
        x = convolve(x.unsqueeze(-1).to(first.weight.dtype), first)
        # In pairs, because the input of the next convolution need not be kept: the largest tensors of the whole model.
        for layer, following in pairwise(self.conv_layers):
            norm, conv = layer["2"], following["0"]  # type: ignore[index]
            if isinstance(norm, ChannelNorm):
                x = norm_gelu_convolve(x, norm.weight, norm.bias, conv)
            else:
                x = convolve(_activate(x, norm), conv)

        return _activate(x, last)


def _activate(x: Tensor, norm: nn.Module) -> Tensor:
    """Norm and GELU: (N, S, C) -> (N, S, C)."""
    if isinstance(norm, ChannelNorm):
        return norm_gelu(x, norm.weight, norm.bias)
    if isinstance(norm, nn.GroupNorm):
        x = norm(x.transpose(1, 2)).transpose(1, 2)

    return F.gelu(x)


def _build_norm(kind: str, channels: int, *, first: bool) -> nn.Module:
    if kind == "layer_norm":
        return ChannelNorm(channels)

    return nn.GroupNorm(channels, channels) if first else nn.Identity()


class WaveformLayer(nn.ModuleDict):
    """Convolution and norm, before GELU; numbered as in the original, where number 1 is a dropout of rate 0."""

    def __init__(self, conv: nn.Conv1d, norm: nn.Module) -> None:
        super().__init__({"0": conv, "2": norm})


class ChannelNorm(nn.ModuleDict):
    """Layer norm over the channels of (N, S, C), in fp32; its parameters are called ``1`` as in the original."""

    def __init__(self, channels: int) -> None:
        super().__init__({"1": nn.LayerNorm(channels)})

    @property
    def weight(self) -> Tensor:
        return self["1"].get_parameter("weight")

    @property
    def bias(self) -> Tensor:
        return self["1"].get_parameter("bias")


class ConvPositions(nn.Module):
    """Relative positions: a stack of grouped convolutions over the full sequence (data2vec, section 3.1)."""

    def __init__(self, dim: int, audio: AudioConfig) -> None:
        super().__init__()
        kernel_size = max(3, audio.position_width // audio.position_depth)
        blocks = {
            # Numbered as in the original, where a transposition is number 0.
            str(i + 1): ConvBlock(nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=audio.position_groups))
            for i in range(audio.position_depth)
        }
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
            x = blocks[0](x)
            blocks = list(blocks[1].children())

        for block in blocks:
            if padding_mask is not None:
                x = x.masked_fill(padding_mask.unsqueeze(-1), 0.0)
            x = block(x)

        return x
