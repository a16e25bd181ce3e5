"""Convolutions over waveforms (wav2vec 2.0, section 2), which both families share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2v_plugin.core.validation import Checked
from d2v_plugin.layers.convolution import ConvBlock, convolve, norm_gelu, norm_gelu_convolve
from d2v_plugin.layers.packing import map_samples, wants_samples
from d2v_plugin.models.ranges import Count, Size, check_parameters

LengthT = TypeVar("LengthT", int, Tensor)


@dataclass(kw_only=True)
class WaveformConfig(Checked):
    """Waveforms: strided convolutions, then relative positions by convolution."""

    num_channels: Size = 1
    """Channels of a signal, which the first convolution sees together: 1 = sound, more = EEG and the like."""

    conv_layers: list[tuple[Size, Size, Size]] = field(
        default_factory=lambda: [(512, 10, 5), *[(512, 3, 2)] * 4, *[(512, 2, 2)] * 2]
    )
    """(channels, kernel size, stride) of each convolution, in samples and frames."""

    conv_norm: Literal["layer_norm", "group_norm"] = "layer_norm"
    """Layer norm after every convolution, or group norm after the first only."""

    conv_bias: bool = False
    """Biases of these convolutions; wav2vec 2.0's large models have them. Only conversions of foreign checkpoints set it."""

    position_width: Size = 95
    """Receptive field of the position convolutions together, in frames."""

    position_groups: Size = 16
    """Groups of the position convolutions."""

    position_depth: Count = 5
    """Number of position convolutions; each has kernel size max(3, position_width // position_depth)."""

    position_norm: bool = True
    """Norm after each of them; the single one of wav2vec 2.0 and HuBERT has none. Only conversions of foreign checkpoints set
    it."""

    @property
    def position_kernel(self) -> int:
        """Kernel size of each position convolution."""
        return max(3, self.position_width // self.position_depth)

    @property
    def num_convolutions(self) -> int:
        """All convolutions, those of positions included."""
        return len(self.conv_layers) + self.position_depth

    @property
    def samples_per_frame(self) -> int:
        """Samples from one frame to the next."""
        return math.prod(stride for _, _, stride in self.conv_layers)


def check_waveforms(config: WaveformConfig, dim: int) -> Iterator[tuple[bool, str]]:
    """Check settings of waveforms that must fit each other, and the width of the model."""
    yield not config.conv_layers, "`audio.conv_layers` must name at least one convolution, but is empty."
    channels = [config.num_channels, *(channels for channels, _, _ in config.conv_layers)]
    count = sum(before * after * kernel for before, (after, kernel, _) in zip(channels, config.conv_layers, strict=False))
    yield from check_parameters(count, "the convolutions over the waveform", "`audio.conv_layers`")
    yield (
        config.position_depth > 0 and dim % config.position_groups != 0,
        f"`audio.position_groups` must divide `dim` ({dim}), but is {config.position_groups}.",
    )


def count_frames(num_samples: LengthT, conv_layers: Sequence[tuple[int, int, int]]) -> LengthT:
    """Frames that the convolutions make of so many samples; 0 or less for fewer than one frame needs."""
    for _, kernel_size, stride in conv_layers:
        num_samples = (num_samples - kernel_size) // stride + 1
    return num_samples


def mark_padded_frames(
    padding_mask: Tensor | None, num_frames: int, conv_layers: Sequence[tuple[int, int, int]]
) -> Tensor | None:
    """The padding mask at the resolution of the frames: (N, T) -> (N, S); None = nothing is padded."""
    if padding_mask is None:
        return None
    lengths = count_frames((~padding_mask).sum(dim=-1), conv_layers)
    return torch.arange(num_frames, device=padding_mask.device) >= lengths.unsqueeze(-1)


def build_position_blocks(config: WaveformConfig, dim: int) -> list[ConvBlock]:
    """The grouped convolutions over the full sequence that give relative positions (data2vec, section 3.1)."""
    kernel_size = config.position_kernel
    return [
        ConvBlock(
            nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=config.position_groups), norm=config.position_norm
        )
        for _ in range(config.position_depth)
    ]


class WaveformEncoder(nn.Module):
    """The convolutions: (N, T), or (N, T, C) of several channels -> (N, S, D)."""

    def __init__(self, config: WaveformConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        in_channels = self.num_channels = config.num_channels
        for i, (channels, kernel_size, stride) in enumerate(config.conv_layers):
            conv = nn.Conv1d(in_channels, channels, kernel_size, stride=stride, bias=config.conv_bias)
            nn.init.kaiming_normal_(conv.weight)
            # Numbered as in the original, where number 1 is a dropout of rate 0, and number 3 GELU.
            layers.append(nn.ModuleDict({"0": conv, "2": _build_norm(config.conv_norm, channels, first=i == 0)}))
            in_channels = channels
        self.conv_layers = nn.ModuleList(layers)
        self.specs = config.conv_layers
        self.shortest = next(length for length in count(1) if count_frames(length, self.specs) > 0)

    def forward(self, x: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        """
        :param padding_mask: (N, T), True = padding, which a group norm leaves out of its statistics; None = it has everything.
        :raises ValueError: the waveforms have another number of channels, or are too short for one frame.
        """
        shape = tuple(x.shape)
        x = x.unsqueeze(-1) if x.dim() == 2 else x
        if x.dim() != 3 or x.size(-1) != self.num_channels:
            raise ValueError(f"`inputs` must be signals of {self.num_channels} channel(s), (N, T, C), but has the shape {shape}.")
        if (num_frames := count_frames(x.size(1), self.specs)) < 1:
            raise ValueError(f"`inputs` must be long enough for one frame, but has {x.size(1)} samples.")
        if padding_mask is not None and wants_samples(x):
            return map_samples(self, x, padding_mask, length=num_frames, shortest=self.shortest)

        first, last = self.conv_layers[0]["0"], self.conv_layers[-1]["2"]  # type: ignore[index]
        x = convolve(x.to(first.weight.dtype), first)
        padded = mark_padded_frames(padding_mask, x.size(1), self.specs[:1])
        # In pairs, because the input of the next convolution need not be kept: the largest tensors of the whole model.
        for layer, following in pairwise(self.conv_layers):
            norm, conv = layer["2"], following["0"]  # type: ignore[index]
            if isinstance(norm, ChannelNorm):
                x = norm_gelu_convolve(x, norm.weight, norm.bias, conv)
            else:
                x = convolve(_activate(x, norm, padded), conv)

        return _activate(x, last, padded)


def _activate(x: Tensor, norm: nn.Module, padded: Tensor | None) -> Tensor:
    """Norm and GELU: (N, S, C) -> (N, S, C).

    :param padded: (N, S), for a group norm, which follows the first convolution alone.
    """
    if isinstance(norm, ChannelNorm):
        return norm_gelu(x, norm.weight, norm.bias)
    if isinstance(norm, nn.GroupNorm):
        x = norm(x.transpose(1, 2)).transpose(1, 2) if padded is None else _normalize_valid(x, norm, padded)
    return F.gelu(x)


def _normalize_valid(x: Tensor, norm: nn.GroupNorm, padded: Tensor) -> Tensor:
    """Group norm of each channel, (N, S, C), whose statistics are those of the frames that are no padding."""
    padded, count = padded.unsqueeze(-1), (~padded).sum(dim=1).clamp(min=1).view(-1, 1, 1)
    x = x.float().masked_fill(padded, 0.0)
    centred = (x - x.sum(dim=1, keepdim=True) / count).masked_fill(padded, 0.0)
    variance = centred.square().sum(dim=1, keepdim=True) / count

    return (centred * (variance + norm.eps).rsqrt() * norm.weight + norm.bias).to(norm.weight.dtype)


def _build_norm(kind: str, channels: int, *, first: bool) -> nn.Module:
    if kind == "layer_norm":
        return ChannelNorm(channels)
    return nn.GroupNorm(channels, channels) if first else nn.Identity()


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
