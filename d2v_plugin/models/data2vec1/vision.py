"""Images: BEiT with one CLS token and relative positions.

Differences from fairseq's ``data2vec_vision``: its debugging output and ``assert`` are gone, tables for each block work, and the
head (``final_proj``), which it creates but never applies, is applied, as in the code that the published models come from
(github.com/facebookresearch/data2vec_vision). ``head_layers: 0`` has no head, which is what fairseq's code computes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from fairseq2.device import Device
from torch import Tensor, nn
from typing_extensions import override

from d2v_plugin.models.data2vec1.base import Data2Vec1Model, Encoder1, EncoderInput, attention_mask
from d2v_plugin.models.data2vec1.blocks import BlockOutput, build_beit_blocks, table_size
from d2v_plugin.models.data2vec1.config import Data2Vec1ModelConfig, Image1Config
from d2v_plugin.models.data2vec2.encoder import BlockList


class Data2VecVisionModel(Data2Vec1Model):
    """(N, C, H, W) -> (N, S, D), S patches row by row."""

    num_extra_tokens = 1

    def __init__(self, config: Data2Vec1ModelConfig, image: Image1Config) -> None:
        super().__init__(config)
        self.image = image
        self.patch_embed = PatchEmbed(image.num_channels, config.dim, image.patch_size)
        self.cls_emb = nn.Parameter(torch.empty(1, 1, config.dim))
        self.mask_emb = nn.Parameter(torch.empty(1, 1, config.dim))
        self.encoder = VisionEncoder1(config, image)
        self.final_proj = nn.Linear(config.dim, config.dim) if config.head_layers > 0 else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the parameters that no child module owns.

        fairseq passes BEiT's standard deviation as the mean; both embeddings have had N(0.02, 1) since.
        """
        for parameter in (self.cls_emb, self.mask_emb):
            nn.init.trunc_normal_(parameter, mean=0.02)

    @property
    @override
    def context_encoder(self) -> Encoder1:
        return self.encoder

    @property
    @override
    def blocks(self) -> BlockList:
        return self.encoder.blocks

    @property
    @override
    def head_modules(self) -> tuple[str, ...]:
        return ("final_proj", "mask_emb", "encoder.norm")

    @property
    @override
    def frontend_modules(self) -> tuple[str, ...]:
        return ("patch_embed",)

    @property
    @override
    def prediction_modules(self) -> tuple[str, ...]:
        return ("final_proj", "mask_emb") if self.final_proj is not None else ("mask_emb",)

    @property
    @override
    def local_modules(self) -> tuple[str, ...]:
        return ("patch_embed", "cls_emb")

    @override
    def extract_local(self, inputs: Tensor) -> Tensor:
        size = self.image.image_size
        if inputs.shape[-2:] != (size, size):
            shape = tuple(inputs.shape)
            raise ValueError(f"`inputs` must have the height and width {size} (`image_size`), but has the shape {shape}.")
        x = self.patch_embed(inputs)

        return torch.cat([self.cls_emb.to(x.dtype).expand(x.size(0), -1, -1), x], dim=1)

    @override
    def mask_local(self, local: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return local

        # (N, S) -> (N, 1 + S, 1)
        return torch.where(F.pad(mask, (1, 0)).unsqueeze(-1), self.mask_emb.to(local.dtype), local)

    @override
    def predict(self, x: Tensor) -> Tensor:
        return x if self.final_proj is None else self.final_proj(x)

    @override
    def downsample_padding(self, padding_mask: Tensor | None, length: int) -> Tensor | None:
        if padding_mask is not None:
            raise ValueError("`padding_mask` must be None for images.")

        return None


class PatchEmbed(nn.Module):
    """A linear map of every patch."""

    def __init__(self, num_channels: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(num_channels, dim, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        # (N, C, H, W) -> (N, D, H/P, W/P) -> (N, S, D)
        return self.conv(x).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]


class VisionEncoder1(Encoder1):
    """The Transformer with its relative positions."""

    position_modules = ("rel_pos_bias",)

    def __init__(self, config: Data2Vec1ModelConfig, image: Image1Config) -> None:
        super().__init__()
        self.side = image.image_size // image.patch_size
        self.rel_pos_bias = RelativePositionBias(config, image) if image.relative_positions == "shared" else None
        self.blocks = build_beit_blocks(config, image)
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps) if image.final_norm else None

    @override
    def prepare(self, local: Tensor, padding_mask: Tensor | None = None, context: Tensor | None = None) -> EncoderInput:
        bias = None
        if self.rel_pos_bias is not None:
            bias = self._look_up(self.rel_pos_bias.relative_position_bias_table)

        return EncoderInput(local, attention_mask(padding_mask, context), bias)

    @override
    def run(self, inputs: EncoderInput) -> Iterator[BlockOutput]:
        x = inputs.x
        shared = self._restrict(inputs.bias, inputs.mask)
        for block in self.blocks:
            table = block.attn.relative_position_bias_table  # type: ignore[union-attr]
            bias = shared if table is None else self._restrict(self._look_up(table), inputs.mask)  # type: ignore[arg-type]
            output: BlockOutput = block(x, bias)
            x = output.block
            yield output

    @override
    def finish(self, x: Tensor) -> Tensor:
        return x if self.norm is None else self.norm(x)

    def _restrict(self, bias: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """One bias for what is added to the logits and what is attended to."""
        if bias is None or mask is None:
            return mask if bias is None else bias

        return bias.masked_fill(~mask, -torch.inf)

    def _look_up(self, table: Tensor) -> Tensor:
        """(P, H) -> (H, 1 + S, 1 + S)"""
        return table[relative_positions(self.side, table.device)].permute(2, 0, 1)


class RelativePositionBias(nn.Module):
    """One attention bias for each head and each offset of two patches, shared by all blocks."""

    def __init__(self, config: Data2Vec1ModelConfig, image: Image1Config) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.empty(table_size(image), config.num_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start without a bias."""
        nn.init.zeros_(self.relative_position_bias_table)


def relative_positions(side: int, device: Device | None = None) -> Tensor:
    """The row of the table for every pair of tokens, in the original's order: (1 + S, 1 + S) int64.

    The table holds the offsets of two patches row by row, then CLS to patch, patch to CLS, CLS to CLS.
    """
    patches = torch.arange(side * side, device=device)
    rows, columns = patches // side, patches % side
    width = 2 * side - 1
    down = rows[:, None] - rows[None, :] + side - 1
    across = columns[:, None] - columns[None, :] + side - 1

    # (S, S) -> (1 + S, 1 + S)
    index = F.pad(down * width + across, (1, 0, 1, 0))
    index[0, :] = width * width
    index[:, 0] = width * width + 1
    index[0, 0] = width * width + 2

    return index
