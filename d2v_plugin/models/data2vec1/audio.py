"""Speech: wav2vec 2.0's convolutions, then a post-norm Transformer with relative positions by convolution.

Differences from fairseq's ``data2vec_audio``: padded frames are zero before *every* position convolution, not only before the
first (``original_padding`` restores it); the sequence is not padded to an even length, which changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from fairseq2.nn.utils.grad import scale_grad
from torch import Tensor, nn
from typing_extensions import override

from d2v_plugin.layers.convolution import ConvBlock
from d2v_plugin.layers.dropout import Dropout
from d2v_plugin.models.data2vec1.base import Data2Vec1Model, Encoder1, EncoderInput, attention_mask
from d2v_plugin.models.data2vec1.blocks import BlockOutput, build_post_norm_blocks
from d2v_plugin.models.data2vec1.config import Audio1Config, Data2Vec1ModelConfig
from d2v_plugin.models.data2vec2.config import AudioConfig
from d2v_plugin.models.data2vec2.encoder import BlockList
from d2v_plugin.models.data2vec2.frontends.audio import WaveformEncoder, count_frames, mark_padded_frames


class Data2VecAudioModel(Data2Vec1Model):
    """(N, T) samples at 16 kHz -> (N, S, D), 50 frames a second with the standard convolutions."""

    def __init__(self, config: Data2Vec1ModelConfig, audio: Audio1Config) -> None:
        super().__init__(config)
        self.conv_layers = audio.conv_layers
        self.local_grad_scale = audio.local_grad_scale
        num_channels = audio.conv_layers[-1][0]
        self.feature_extractor = WaveformEncoder(AudioConfig(conv_layers=audio.conv_layers, conv_norm=audio.conv_norm))
        self.layer_norm = nn.LayerNorm(num_channels, eps=config.norm_eps)
        self.post_extract_proj = nn.Linear(num_channels, config.dim)
        self.input_dropout = Dropout(audio.input_dropout)
        self.mask_emb = nn.Parameter(torch.empty(config.dim))
        self.encoder = AudioEncoder1(config, audio)
        self.final_proj = nn.Linear(config.dim, config.dim) if config.head_layers > 0 else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the parameters that no child module owns."""
        nn.init.uniform_(self.mask_emb)

    @property
    @override
    def context_encoder(self) -> Encoder1:
        return self.encoder

    @property
    @override
    def blocks(self) -> BlockList:
        return self.encoder.layers

    @property
    @override
    def head_modules(self) -> tuple[str, ...]:
        return ("final_proj", "mask_emb")

    @property
    @override
    def frontend_modules(self) -> tuple[str, ...]:
        return ("feature_extractor",)

    @property
    @override
    def prediction_modules(self) -> tuple[str, ...]:
        return ("final_proj", "mask_emb") if self.final_proj is not None else ("mask_emb",)

    @property
    @override
    def local_modules(self) -> tuple[str, ...]:
        return ("feature_extractor", "layer_norm", "post_extract_proj")

    @override
    def extract_local(self, inputs: Tensor) -> Tensor:
        if self.output_length(inputs.size(-1)) < 1:
            raise ValueError(f"`inputs` must be long enough for one frame, but has {inputs.size(-1)} samples.")
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.local_grad_scale > 0.0):
            x = self.feature_extractor(inputs)
            if 0.0 < self.local_grad_scale != 1.0:
                x = scale_grad(x, self.local_grad_scale)

        return self.post_extract_proj(self.layer_norm(x))  # type: ignore[no-any-return]

    @override
    def mask_local(self, local: Tensor, mask: Tensor | None) -> Tensor:
        x = self.input_dropout(local)

        return x if mask is None else torch.where(mask.unsqueeze(-1), self.mask_emb.to(x.dtype), x)

    @override
    def predict(self, x: Tensor) -> Tensor:
        return x if self.final_proj is None else self.final_proj(x)

    @override
    def output_length(self, input_length: int) -> int:
        return max(count_frames(input_length, self.conv_layers), 0)

    @override
    def downsample_padding(self, padding_mask: Tensor | None, length: int) -> Tensor | None:
        return None if padding_mask is None else mark_padded_frames(padding_mask, length, self.conv_layers)


class AudioEncoder1(Encoder1):
    """Relative positions, norm and Transformer."""

    position_modules = ("pos_conv",)

    def __init__(self, config: Data2Vec1ModelConfig, audio: Audio1Config) -> None:
        super().__init__()
        kernel_size = audio.position_kernel
        self.pos_conv = nn.Sequential(
            *(
                ConvBlock(nn.Conv1d(config.dim, config.dim, kernel_size, padding=kernel_size // 2, groups=audio.position_groups))
                for _ in range(audio.position_depth)
            )
        )
        self.layer_norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.dropout = Dropout(config.dropout)
        self.layers = build_post_norm_blocks(config)
        self.original_padding = config.original_padding

    @override
    def prepare(self, local: Tensor, padding_mask: Tensor | None = None, context: Tensor | None = None) -> EncoderInput:
        x = local
        if padding_mask is not None:
            x = x.masked_fill(padding_mask.unsqueeze(-1), 0.0)

        positions = x
        for i, block in enumerate(self.pos_conv):
            if i > 0 and padding_mask is not None and not self.original_padding:
                positions = positions.masked_fill(padding_mask.unsqueeze(-1), 0.0)
            positions = block(positions)

        return EncoderInput(x + positions, attention_mask(padding_mask, context))

    @override
    def run(self, inputs: EncoderInput) -> Iterator[BlockOutput]:
        x = self.dropout(self.layer_norm(inputs.x))
        for layer in self.layers:
            output: BlockOutput = layer(x, inputs.mask)
            x = output.block
            yield output
