"""data2vec 2.0 (arXiv 2212.07525) for transformers: speech, images and text.

This file and the configuration beside it are all that a model needs: they import torch and transformers alone. It reads from
the top to the bottom as data flow: frontends make tokens of waveforms, pixels or words; the Transformer; heads. The names of the
parameters are those of the original in fairseq.

Tensors are (N, S, D): samples, tokens, channels. With extra tokens (CLS) these come first, (N, X + S, D), as in ViT. Masks are
True where there is something, False at padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutput, ImageClassifierOutput, SequenceClassifierOutput
from transformers.utils import ModelOutput

from .configuration_data2vec2 import Data2Vec2Config

MODALITIES = {"input_values": "AUDIO", "pixel_values": "IMAGE", "input_ids": "TEXT"}


@dataclass
class Data2Vec2Output(ModelOutput):
    """What the encoder computes."""

    last_hidden_state: Tensor | None = None
    """(N, X + S, D)"""

    hidden_states: tuple[Tensor, ...] | None = None
    """The input of the shared blocks, and the output of each."""

    attentions: tuple[Tensor, ...] | None = None
    """The weights in each shared block, (N, H, X + S, X + S)."""

    token_mask: Tensor | None = None
    """(N, X + S), False = padding; None = nothing is padded."""


# --- Attention biases


def alibi_slopes(num_heads: int, device: torch.device) -> Tensor:
    """(H,): a geometric series for powers of two, interpolated otherwise."""
    power = 1 << (num_heads.bit_length() - 1)
    series = torch.arange(1, power + 1, device=device) * (8 / power)
    between = torch.arange(num_heads - power, device=device) * (8 / power) + 4 / power

    return torch.exp2(-torch.cat([series, between]))


def token_distances(length: int, width: int | None, metric: str, device: torch.device) -> Tensor:
    """(S, S): distances in a sequence or, with a width, on a grid of patches."""
    places = torch.arange(length, device=device)
    if width is None or metric == "sequential":
        return (places[:, None] - places[None, :]).abs().float()
    points = torch.stack([places // width, places % width], dim=-1).float()
    steps = points[:, None, :] - points[None, :, :]

    return steps.abs().sum(-1) if metric == "manhattan" else steps.square().sum(-1).sqrt()


# --- Transformer


class Attention(nn.Module):
    """Self-attention with one projection of queries, keys and values."""

    def __init__(self, config: Data2Vec2Config) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, x: Tensor, bias: Tensor | None, output_weights: bool = False) -> tuple[Tensor, Tensor | None]:
        """
        :param bias: added to the logits; broadcasts to (N, H, S, S).
        :returns: the output before :attr:`dropout`, and the weights if they are asked for.
        """
        rows, length, dim = x.shape
        # (N, S, D) -> 3 × (N, H, S, D / H)
        q, k, v = self.qkv(x).view(rows, length, 3, self.num_heads, dim // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.config.attention_dropout if self.training else 0.0
        weights = None
        if bias is not None:
            bias = bias.to(q.dtype)
        if output_weights or self.config._attn_implementation == "eager":
            logits = q @ k.transpose(-1, -2) * q.size(-1) ** -0.5
            if bias is not None:
                logits = logits + bias
            weights = logits.softmax(dim=-1, dtype=torch.float32).to(q.dtype)
            x = F.dropout(weights, dropout) @ v
        else:
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)

        return self.proj(x.transpose(1, 2).reshape(rows, length, dim)), weights if output_weights else None


class FeedForward(nn.Module):
    """Two layers with GELU between them."""

    def __init__(self, config: Data2Vec2Config) -> None:
        super().__init__()
        hidden_dim = int(config.hidden_size * config.mlp_ratio)
        self.fc1 = nn.Linear(config.hidden_size, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, config.hidden_size)
        self.dropout = nn.Dropout(config.activation_dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))


def build_norm(config: Data2Vec2Config) -> nn.LayerNorm:
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, elementwise_affine=config.norm_affine)


class Block(GradientCheckpointingLayer):
    """A Transformer block, post-norm unless ``norm_first``."""

    def __init__(self, config: Data2Vec2Config, drop_path: float, layer_drop: float) -> None:
        super().__init__()
        self.norm1 = build_norm(config)
        self.attn = Attention(config)
        self.norm2 = build_norm(config)
        self.mlp = FeedForward(config)
        self.post_mlp_dropout = nn.Dropout(config.post_mlp_dropout)
        self.norm_first = config.norm_first
        self.drop_path = drop_path
        self.layer_drop = layer_drop

    def forward(self, x: Tensor, bias: Tensor | None, output_weights: bool = False) -> tuple[Tensor, Tensor | None]:
        skipped = x
        if self.norm_first:
            branch, weights = self.attn(self.norm1(x), bias, output_weights)
            x = x + self._drop(self.attn.dropout(branch))
            x = x + self._drop(self.post_mlp_dropout(self.mlp(self.norm2(x))))
        else:
            branch, weights = self.attn(x, bias, output_weights)
            x = self.norm1(x + self._drop(self.attn.dropout(branch)))
            x = self.norm2(x + self._drop(self.post_mlp_dropout(self.mlp(x))))
        if self.training and self.layer_drop > 0.0:
            x = torch.where(torch.rand((), device=x.device) >= self.layer_drop, x, skipped)

        return x, weights

    def _drop(self, branch: Tensor) -> Tensor:
        """Stochastic depth: leave the branch out for some of the samples."""
        if not self.training or self.drop_path == 0.0:
            return branch
        kept = torch.rand(branch.size(0), 1, 1, device=branch.device) >= self.drop_path

        return branch * kept / (1.0 - self.drop_path)


def build_blocks(config: Data2Vec2Config, depth: int, drop_path: list[float], layer_drop: float) -> nn.ModuleList:
    first, last = drop_path
    rates = [first + (last - first) * i / max(1, depth - 1) for i in range(depth)]

    return nn.ModuleList(Block(config, rate, layer_drop) for rate in rates)


# --- Frontends


class ContextEncoder(nn.Module):
    """The norm of a frontend's output and its prenet."""

    def __init__(self, config: Data2Vec2Config, section: dict[str, Any], has_norm: bool) -> None:
        super().__init__()
        self.blocks = build_blocks(config, section["prenet_depth"], section["prenet_drop_path"], section["prenet_layer_drop"])
        self.norm = build_norm(config) if has_norm else nn.Identity()
        self.dropout = nn.Dropout(section["prenet_dropout"]) if has_norm else nn.Identity()
        self.norm_first = config.norm_first

    def forward(self, x: Tensor, biases: list[Tensor | None]) -> Tensor:
        if not self.norm_first:
            x = self.dropout(self.norm(x))
        for block, bias in zip(self.blocks, biases, strict=True):
            x, _ = block(x, bias)

        return self.dropout(self.norm(x)) if self.norm_first else x


class Frontend(nn.Module):
    """One modality's part of the model: input -> tokens with positions, extra tokens, prenet."""

    width: int | None = None
    """Patches along each side of an image; None for sequences."""

    local_encoder: nn.Module
    project_features: nn.Module | None

    def __init__(self, config: Data2Vec2Config, section: dict[str, Any], has_norm: bool = True) -> None:
        super().__init__()
        self.section = section
        self.num_heads = config.num_attention_heads
        self.prenet_depth = section["prenet_depth"]
        self.num_layers = self.prenet_depth + config.num_hidden_layers
        self.num_extra_tokens = section["num_extra_tokens"]
        self.original_padding = config.original_padding
        self.project_features = None
        self.context_encoder = ContextEncoder(config, section, has_norm)
        if self.num_extra_tokens > 0:
            self.extra_tokens = nn.Parameter(torch.zeros(1, self.num_extra_tokens, config.hidden_size))
        self.alibi = section["alibi"]
        if self.alibi is not None:
            num_scales = self.num_layers if self.alibi["per_layer"] else 1
            num_heads = (self.alibi["num_heads"] or self.num_heads) if self.alibi["per_head"] else 1
            scale = torch.ones(num_scales, 1, num_heads, 1, 1)
            self.alibi_scale = nn.Parameter(scale, requires_grad=self.alibi["learned_scale"])

    def forward(self, inputs: Tensor, mask: Tensor | None) -> tuple[Tensor, list[Tensor | None], Tensor | None]:
        """
        :param mask: at the resolution of the input.
        :returns: tokens (N, X + S, D), the attention bias of each shared block, and the mask of the tokens.
        """
        grad_scale = self.section["local_grad_scale"]
        with torch.set_grad_enabled(torch.is_grad_enabled() and grad_scale > 0.0):
            x = self.encode_local(inputs, mask)
        if x.requires_grad and grad_scale != 1.0:
            x.register_hook(lambda grad: grad * grad_scale)
        if self.project_features is not None:
            x = self.project_features(x)
        mask = self.mask_tokens(mask, x.size(1))
        x = self.add_positions(x, mask)
        if self.num_extra_tokens > 0:
            x = torch.cat([self.extra_tokens.expand(x.size(0), -1, -1).to(x.dtype), x], dim=1)
            mask = None if mask is None else F.pad(mask, (self.num_extra_tokens, 0), value=True)
        biases = self.build_biases(x, mask)

        return self.context_encoder(x, biases[: self.prenet_depth]), biases[self.prenet_depth :], mask

    def encode_local(self, inputs: Tensor, mask: Tensor | None) -> Tensor:
        """Every token by itself, (N, S, C)."""
        return self.local_encoder(inputs)

    def mask_tokens(self, mask: Tensor | None, length: int) -> Tensor | None:
        """The mask at the resolution of the tokens, (N, S)."""
        return None if mask is None else mask.bool()

    def add_positions(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Of text they are in the embedding."""
        return x

    def build_biases(self, x: Tensor, mask: Tensor | None) -> list[Tensor | None]:
        """For each block, those of the prenet first: what is added to the logits of attention."""
        closed = None
        if mask is not None:
            lowest = torch.finfo(x.dtype).min
            closed = torch.zeros(mask.shape, device=x.device).masked_fill(~mask, lowest)[:, None, None, :]
        if self.alibi is None:
            return [closed] * self.num_layers

        extra = self.num_extra_tokens
        # Extra tokens are at distance 0 from everything.
        distances = token_distances(x.size(1) - extra, self.width, self.alibi["distance"], x.device)
        distances = F.pad(distances, (extra, 0, extra, 0))
        num_biased = self.alibi["num_heads"] or self.num_heads
        slopes = F.pad(alibi_slopes(num_biased, x.device), (0, self.num_heads - num_biased)).view(-1, 1, 1)
        scale = self.alibi_scale if self.alibi["learned_scale"] else self.alibi_scale.detach()
        scale = scale.float().clamp_min(0.0)
        if 1 < scale.size(2) < self.num_heads:
            scale = F.pad(scale, (0, 0, 0, 0, 0, self.num_heads - num_biased))
        # L × (1, H, X + S, X + S)
        biases = [factor * distances for factor in -slopes * scale]
        if closed is not None:
            # Not added: the sum would leave the range of the type.
            biases = [torch.where(mask[:, None, None, :], bias, closed) for bias in biases]

        return biases * self.num_layers if len(biases) == 1 else biases


def convolve(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """A convolution with channels last, as of an image of height 1: (N, S, C) -> (N, S', C')."""
    x = x.movedim(-1, 1).unsqueeze(2)
    padding = (0, int(conv.padding[0]))
    x = F.conv2d(x, conv.weight.unsqueeze(2), conv.bias, (1, conv.stride[0]), padding, groups=conv.groups)

    return x.squeeze(2).movedim(1, -1)


class ChannelNorm(nn.ModuleDict):
    """Layer norm over the channels of (N, S, C)."""

    def __init__(self, num_channels: int) -> None:
        super().__init__({"1": nn.LayerNorm(num_channels)})

    def forward(self, x: Tensor) -> Tensor:
        return self["1"](x)


class WaveformEncoder(nn.Module):
    """Strided convolutions: (N, T) -> (N, S, C)."""

    def __init__(self, section: dict[str, Any]) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList()
        in_channels = 1
        for i, (channels, kernel, stride) in enumerate(section["conv_layers"]):
            norm: nn.Module = ChannelNorm(channels)
            if section["conv_norm"] == "group_norm":
                norm = nn.GroupNorm(channels, channels) if i == 0 else nn.Identity()
            conv = nn.Conv1d(in_channels, channels, kernel, stride, bias=section["conv_bias"])
            self.conv_layers.append(nn.ModuleDict({"0": conv, "2": norm}))
            in_channels = channels

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """:param mask: (N, T), False = padding, which a group norm leaves out of its statistics."""
        x = x.to(self.conv_layers[0]["0"].weight.dtype).unsqueeze(-1)
        for layer in self.conv_layers:
            x, norm = convolve(x, layer["0"]), layer["2"]
            if not isinstance(norm, nn.GroupNorm):
                x = norm(x)
            elif mask is None:
                x = norm(x.transpose(1, 2)).transpose(1, 2)
            else:
                (kernel,), (stride,) = layer["0"].kernel_size, layer["0"].stride
                lengths = (mask.long().sum(dim=1) - kernel) // stride + 1
                x = normalize_valid(x, norm, torch.arange(x.size(1), device=x.device) < lengths.unsqueeze(1))
            x = F.gelu(x)

        return x


def normalize_valid(x: Tensor, norm: nn.GroupNorm, mask: Tensor) -> Tensor:
    """Group norm of each channel, (N, S, C), whose statistics are those of the frames where ``mask`` (N, S) is True."""
    padded, count = ~mask.unsqueeze(-1), mask.sum(dim=1).clamp(min=1).view(-1, 1, 1)
    x = x.float().masked_fill(padded, 0.0)
    centred = (x - x.sum(dim=1, keepdim=True) / count).masked_fill(padded, 0.0)
    variance = centred.square().sum(dim=1, keepdim=True) / count

    return (centred * (variance + norm.eps).rsqrt() * norm.weight + norm.bias).to(norm.weight.dtype)


class PositionConvolution(nn.Sequential):
    """A grouped convolution of the same length, layer norm without parameters, GELU: (N, S, D) -> (N, S, D)."""

    def __init__(self, dim: int, section: dict[str, Any]) -> None:
        kernel = section["position_kernel"]
        super().__init__(nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=section["position_groups"]))
        self.has_norm = section["position_norm"]

    def forward(self, x: Tensor) -> Tensor:
        x = convolve(x, self[0])[:, : x.size(1)]

        return F.gelu(F.layer_norm(x, x.shape[-1:]) if self.has_norm else x)


class ConvPositions(nn.Module):
    """Relative positions: convolutions over the whole sequence, to which padding is silence."""

    def __init__(self, dim: int, section: dict[str, Any]) -> None:
        super().__init__()
        blocks: dict[str, nn.Module] = {str(i + 1): PositionConvolution(dim, section) for i in range(section["position_depth"])}
        self.pre_norm = section["position_pre_norm"]
        if self.pre_norm:
            blocks = {"0": nn.LayerNorm(dim), "1": nn.ModuleDict(blocks)}
        for name, block in blocks.items():
            self.add_module(name, block)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        blocks = list(self.children())
        if self.pre_norm:
            x, blocks = blocks[0](x), list(blocks[1].children())
        for block in blocks:
            x = block(x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0.0))

        return x


class AudioFrontend(Frontend):
    """Waveforms (N, T) -> (N, S, D), 50 frames a second with the usual convolutions."""

    def __init__(self, config: Data2Vec2Config) -> None:
        super().__init__(config, config.audio)
        num_channels = config.audio["conv_layers"][-1][0]
        self.local_encoder = WaveformEncoder(config.audio)
        self.project_features = nn.Sequential(
            nn.Identity(), nn.LayerNorm(num_channels), nn.Linear(num_channels, config.hidden_size)
        )
        self.relative_positional_encoder = ConvPositions(config.hidden_size, config.audio)

    def count_frames(self, num_samples: Any) -> Any:
        """Frames of so many samples."""
        for _, kernel, stride in self.section["conv_layers"]:
            num_samples = (num_samples - kernel) // stride + 1
        return num_samples

    def forward(self, inputs: Tensor, mask: Tensor | None) -> tuple[Tensor, list[Tensor | None], Tensor | None]:
        if self.count_frames(inputs.size(1)) < 1:
            raise ValueError(f"`input_values` must be long enough for one frame, but has {inputs.size(1)} samples.")
        return super().forward(inputs, mask)

    def encode_local(self, inputs: Tensor, mask: Tensor | None) -> Tensor:
        return self.local_encoder(inputs, None if self.original_padding else mask)

    def mask_tokens(self, mask: Tensor | None, length: int) -> Tensor | None:
        if mask is None:
            return None
        lengths = self.count_frames(mask.long().sum(dim=1))

        return torch.arange(length, device=mask.device) < lengths.unsqueeze(1)

    def add_positions(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return x + self.relative_positional_encoder(x, None if self.original_padding else mask)


class PatchEmbedding(nn.ModuleDict):
    """A linear map of every patch: (N, C, H, W) -> (N, S, D), row by row."""

    def __init__(self, section: dict[str, Any], dim: int) -> None:
        size = section["patch_size"]
        super().__init__({"proj": nn.Conv2d(section["num_channels"], dim, size, stride=size)})

    def forward(self, x: Tensor) -> Tensor:
        return self["proj"](x.to(self["proj"].weight.dtype)).flatten(2).transpose(1, 2)


class FixedPositions(nn.Module):
    """A table of sines and cosines, one row for each patch."""

    def __init__(self, num_patches: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("positions", torch.zeros(1, num_patches, dim))

    def compute(self) -> Tensor:
        """The first half of the channels encodes the column, the second half the row."""
        _, num_patches, dim = self.positions.shape
        side = int(num_patches**0.5)
        frequencies = 10_000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
        angles = torch.arange(side, dtype=torch.float64).unsqueeze(1) * frequencies
        axis = torch.cat([angles.sin(), angles.cos()], dim=1)

        return torch.cat([axis.repeat(side, 1), axis.repeat_interleave(side, dim=0)], dim=1).unsqueeze(0)


class ImageFrontend(Frontend):
    """Images (N, C, H, W) -> (N, S, D)."""

    def __init__(self, config: Data2Vec2Config) -> None:
        section = config.image
        super().__init__(config, section)
        self.width = section["image_size"] // section["patch_size"]
        embed_dim = section["embed_dim"] or config.hidden_size
        self.local_encoder = PatchEmbedding(section, embed_dim)
        if embed_dim != config.hidden_size:
            self.local_encoder = nn.Sequential(self.local_encoder, nn.Linear(embed_dim, config.hidden_size))
        if section["fixed_positions"]:
            self.fixed_positional_encoder = FixedPositions(self.width**2, config.hidden_size)

    def forward(self, inputs: Tensor, mask: Tensor | None) -> tuple[Tensor, list[Tensor | None], Tensor | None]:
        expected = (self.section["num_channels"], *[self.section["image_size"]] * 2)
        if inputs.shape[1:] != expected:
            raise ValueError(f"`pixel_values` must have the shape (N, C, H, W) with {expected}, but has {tuple(inputs.shape)}.")
        return super().forward(inputs, None)

    def add_positions(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return x + self.fixed_positional_encoder.positions if self.section["fixed_positions"] else x


class TokenEmbedding(nn.Module):
    """Embeddings of tokens and of positions, which count what is not padding, then a norm: (N, S) -> (N, S, D)."""

    def __init__(self, section: dict[str, Any], dim: int) -> None:
        super().__init__()
        self.pad_idx, self.max_positions = section["pad_idx"], section["max_positions"]
        self.position_scale = section["position_scale"]
        self.embed_tokens = nn.Embedding(section["vocab_size"], dim, padding_idx=self.pad_idx)
        self.embed_positions = nn.Embedding(self.max_positions + self.pad_idx + 1, dim, padding_idx=self.pad_idx)
        self.layernorm_embedding = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(section["dropout"])

    def forward(self, tokens: Tensor) -> Tensor:
        if tokens.size(1) > self.max_positions:
            raise ValueError(f"`input_ids` must have at most {self.max_positions} tokens, but has {tokens.size(1)}.")
        valid = tokens.ne(self.pad_idx).long()
        positions = valid.cumsum(dim=1) * valid + self.pad_idx

        x = torch.add(self.embed_tokens(tokens), self.embed_positions(positions), alpha=self.position_scale)

        return self.dropout(self.layernorm_embedding(x))


class TextFrontend(Frontend):
    """Token ids (N, S) -> (N, S, D)."""

    def __init__(self, config: Data2Vec2Config) -> None:
        super().__init__(config, config.text, has_norm=config.text["prenet_depth"] > 0)
        self.local_encoder = TokenEmbedding(config.text, config.hidden_size)


# --- Models


class Data2Vec2PreTrainedModel(PreTrainedModel):
    """Loading, saving, initialization."""

    config_class = Data2Vec2Config
    base_model_prefix = "data2vec2"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["Block"]  # noqa: RUF012

    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
            if getattr(module, "padding_idx", None) is not None:
                nn.init.zeros_(module.weight[module.padding_idx])
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv1d | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm | nn.GroupNorm) and module.weight is not None:
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, FixedPositions):
            with torch.no_grad():
                module.positions.copy_(module.compute())
        elif isinstance(module, Frontend):
            if module.num_extra_tokens > 0:
                nn.init.normal_(module.extra_tokens, std=std)
            if module.alibi is not None:
                nn.init.ones_(module.alibi_scale)


class Data2Vec2Model(Data2Vec2PreTrainedModel):
    """The encoder."""

    def __init__(self, config: Data2Vec2Config) -> None:
        super().__init__(config)
        kinds = {"TEXT": TextFrontend, "AUDIO": AudioFrontend, "IMAGE": ImageFrontend}
        self.modality_encoders = nn.ModuleDict(
            {name: kind(config) for name, kind in kinds.items() if getattr(config, name.lower()) is not None}
        )
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.blocks = build_blocks(config, config.num_hidden_layers, config.drop_path, config.layer_drop)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.norm_first else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        if self.config.text is None:
            raise NotImplementedError("The model reads no text.")
        return self.modality_encoders["TEXT"].local_encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.modality_encoders["TEXT"].local_encoder.embed_tokens = value

    def forward(
        self,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Encode samples of one modality.

        :param input_values: waveforms (N, T) at 16 kHz, normalized.
        :param attention_mask: 1 = something, 0 = padding, of the shape of ``input_values`` or ``input_ids``.
        :param pixel_values: images (N, C, H, W), normalized.
        :param input_ids: token ids (N, S).
        """
        given = {"AUDIO": input_values, "IMAGE": pixel_values, "TEXT": input_ids}
        named = [name for name, inputs in given.items() if inputs is not None]
        if len(named) != 1 or named[0] not in self.modality_encoders:
            known = ", ".join(name for name, kind in MODALITIES.items() if kind in self.modality_encoders)
            raise ValueError(f"Exactly one must be given of: {known}.")
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return_dict = self.config.return_dict if return_dict is None else return_dict

        x, biases, mask = self.modality_encoders[named[0]](given[named[0]], attention_mask)
        x = self.input_dropout(x)
        hidden_states, attentions = [x], []
        for i, (block, bias) in enumerate(zip(self.blocks, biases, strict=True)):
            x, weights = block(x, bias, output_attentions)
            if self.norm is not None and i == len(self.blocks) - 1:
                x = self.norm(x)
            hidden_states.append(x)
            attentions.append(weights)
        output = Data2Vec2Output(
            last_hidden_state=x,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
            token_mask=mask,
        )

        return output if return_dict else output.to_tuple()


# --- Heads


class ClassificationHead(nn.Module):
    """Pooled features -> logits: (N, D) -> (N, C)."""

    def __init__(self, config: Data2Vec2Config) -> None:
        super().__init__()
        dim = config.hidden_size
        self.norm = nn.LayerNorm(dim, eps=config.head_norm_eps) if config.head_norm else nn.Identity()
        self.dropout = nn.Dropout(config.head_dropout)
        self.dense = nn.Linear(dim, dim) if config.head_hidden else None
        self.proj = nn.Linear(dim, config.num_labels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        if self.dense is not None:
            x = self.dense(self.dropout(x)).tanh()

        return self.proj(self.dropout(x))


class _WithHead(Data2Vec2PreTrainedModel):
    """An encoder with a head; options of ``forward`` are those of :class:`Data2Vec2Model`.

    Subclasses have ``build_head(config)``, ``compute_logits(whole, x, mask)`` and ``compute_loss(logits, labels, mask)``: output
    of the encoder (N, X + S, D), the same without extra tokens (N, S, D), and the mask (N, S), False = padding.
    """

    accepts_loss_kwargs = False
    output_class: type[ModelOutput] = SequenceClassifierOutput

    def __init__(self, config: Data2Vec2Config) -> None:
        super().__init__(config)
        self.data2vec2 = Data2Vec2Model(config)
        self.dropout = nn.Dropout(config.head_dropout)
        self.head = self.build_head(config)
        self.post_init()

    def run(self, inputs: Tensor, attention_mask: Tensor | None, labels: Tensor | None, options: dict[str, Any]) -> Any:
        return_dict = options.pop("return_dict", None)
        named = {self.main_input_name: inputs, "attention_mask": attention_mask}
        output = self.data2vec2(**named, **options, return_dict=True)
        extra = self.data2vec2.modality_encoders[MODALITIES[self.main_input_name]].num_extra_tokens
        mask = None if output.token_mask is None else output.token_mask[:, extra:]
        logits = self.compute_logits(output.last_hidden_state, output.last_hidden_state[:, extra:], mask)
        found = self.output_class(
            loss=None if labels is None else self.compute_loss(logits, labels, mask),
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

        return found if (self.config.return_dict if return_dict is None else return_dict) else found.to_tuple()


class Data2Vec2ForCTC(_WithHead):
    """Symbols of speech at every frame; number ``pad_token_id`` is the blank."""

    main_input_name = "input_values"
    output_class = CausalLMOutput

    def build_head(self, config: Data2Vec2Config) -> nn.Module:
        return nn.Linear(config.hidden_size, config.vocab_size or config.num_labels)

    def forward(
        self, input_values: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **options: Any
    ) -> Any:
        """
        :param labels: (N, L) symbols; negative ones are padding. The loss is the mean of those of the recordings.
        """
        return self.run(input_values, attention_mask, labels, options)

    def compute_logits(self, whole: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.head(self.dropout(x)).float()

    def compute_loss(self, logits: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
        lengths = torch.full((len(logits),), logits.size(1)) if mask is None else mask.sum(dim=1)
        # (N, S, C) -> (S, N, C)
        log_probs = logits.log_softmax(dim=-1).transpose(0, 1)
        kept = labels >= 0
        blank = self.config.pad_token_id or 0

        return F.ctc_loss(log_probs, labels[kept], lengths, kept.sum(dim=1), blank=blank, reduction="none").mean()


class _ForClassification(_WithHead):
    """One class for each sample, a number, or any number of tags."""

    def build_head(self, config: Data2Vec2Config) -> nn.Module:
        self.tags_frames = config.head_pooling in ("linear_softmax", "frame_mean")
        return nn.Linear(config.hidden_size, config.num_labels) if self.tags_frames else ClassificationHead(config)

    def compute_logits(self, whole: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.tags_frames:
            return pool_tags(self.head(self.dropout(x)).float(), mask, self.config.head_pooling)
        if self.config.head_pooling == "cls":
            # The last extra token; text without any has its class token at the first position.
            pooled = whole[:, max(0, whole.size(1) - x.size(1) - 1)]
        else:
            valid = torch.ones_like(x[:, :, :1], dtype=torch.bool) if mask is None else mask.unsqueeze(-1)
            pooled = (x.float().masked_fill(~valid, 0.0).sum(dim=1) / valid.sum(dim=1)).to(x.dtype)

        return self.head(pooled).float()

    def compute_loss(self, logits: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
        kind = self.config.problem_type or ("regression" if logits.size(1) == 1 else "single_label_classification")
        if kind == "regression":
            return F.mse_loss(logits.squeeze(1), labels.to(logits.dtype))
        if kind == "multi_label_classification":
            return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return F.cross_entropy(logits, labels)


def pool_tags(logits: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """Logits of tags at each frame -> logits of the whole recording: (N, S, C) -> (N, C).

    The probability of a tag is the mean of those at all frames or, ``linear_softmax``, that weighted by themselves: Σp² / Σp.
    """
    log_probs = F.logsigmoid(logits)
    if mask is not None:
        log_probs = log_probs.masked_fill(~mask.unsqueeze(-1), -torch.inf)
    if pooling == "linear_softmax":
        pooled = (2 * log_probs).logsumexp(dim=1) - log_probs.logsumexp(dim=1)
    else:
        count = logits.new_full((len(logits), 1), logits.size(1)) if mask is None else mask.sum(dim=1, keepdim=True)
        pooled = log_probs.logsumexp(dim=1) - count.log()
    pooled = pooled.clamp(max=-1e-7)

    return pooled - (-pooled.expm1()).log()


class Data2Vec2ForAudioClassification(_ForClassification):
    """Classes or tags of recordings."""

    main_input_name = "input_values"

    def forward(
        self, input_values: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **options: Any
    ) -> Any:
        return self.run(input_values, attention_mask, labels, options)


class Data2Vec2ForImageClassification(_ForClassification):
    """Classes of images."""

    main_input_name = "pixel_values"
    output_class = ImageClassifierOutput

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **options: Any) -> Any:
        return self.run(pixel_values, None, labels, options)


class Data2Vec2ForSequenceClassification(_ForClassification):
    """Classes of sentences or of pairs of them, or a number."""

    main_input_name = "input_ids"

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **options: Any
    ) -> Any:
        return self.run(input_ids, attention_mask, labels, options)
