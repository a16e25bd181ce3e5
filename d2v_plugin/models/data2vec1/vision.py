"""Images: BEiT with one CLS token and relative positions.

Differences from fairseq's ``data2vec_vision``: its debugging output and ``assert`` are gone, tables for each block work, and the
head (``final_proj``), which it creates but never applies, is applied, as in the code that the published models come from
(github.com/facebookresearch/data2vec_vision). ``head_layers: 0`` has no head, which is what fairseq's code computes. Weights
start as in that repository, too: fairseq's are twice as large, and its CLS token and mask embedding have N(0.02, 1), because it
passes the deviation as the mean.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from fairseq2.device import Device
from torch import Tensor, nn
from typing_extensions import override

from d2v_plugin.core.batch import Grid
from d2v_plugin.layers.attention import Bias
from d2v_plugin.models.base import LocalFeatures
from d2v_plugin.models.data2vec1.base import Data2Vec1Model, Encoder, EncoderInput, attention_mask
from d2v_plugin.models.data2vec1.blocks import build_beit_blocks, table_size
from d2v_plugin.models.data2vec1.config import Data2Vec1ModelConfig, ImageConfig
from d2v_plugin.models.patches import PatchEmbedding, refuse_padding
from d2v_plugin.models.positions import count_offsets, resize_absolute, resize_relative


class Data2VecVisionModel(Data2Vec1Model):
    """(N, C, H, W) -> (N, S, D), S patches row by row."""

    num_extra_tokens = 1
    frontend_modules = ("patch_embed",)
    prediction_modules = ("final_proj", "mask_emb")
    head_modules = (*prediction_modules, "encoder.norm")
    local_modules = ("patch_embed", "cls_emb")

    def __init__(self, config: Data2Vec1ModelConfig, image: ImageConfig) -> None:
        super().__init__(config)
        self.image = image
        self.patch_embed = PatchEmbedding(image, config.dim, name="conv")
        self.cls_emb = nn.Parameter(torch.empty(1, 1, config.dim))
        self.mask_emb = nn.Parameter(torch.empty(1, 1, config.dim))
        self.encoder = VisionEncoder(config, image)
        self.final_proj = nn.Linear(config.dim, config.dim) if config.head_layers > 0 else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the parameters that no child module owns."""
        for parameter in (self.cls_emb, self.mask_emb):
            cut_normal_(parameter)

    @override
    def embed_tokens(self, inputs: Tensor, padding_mask: Tensor | None = None) -> Tensor:
        x = self.patch_embed(inputs)

        # The more precise of both, which under autocast is that of the parameters.
        return torch.cat([self.cls_emb.expand(x.size(0), -1, -1), x], dim=1)

    @override
    def find_grid(self, inputs: Tensor) -> Grid:
        return self.image.cut(inputs)

    @override
    def mask_local(self, local: LocalFeatures, mask: Tensor | None, fill: Tensor | None = None) -> LocalFeatures:
        if mask is None:
            return local

        # (N, S) -> (N, 1 + S, 1)
        return replace(local, x=torch.where(F.pad(mask, (1, 0)).unsqueeze(-1), self.mask_emb, local.x))

    @override
    def downsample_padding(self, padding_mask: Tensor | None, length: int) -> Tensor | None:
        refuse_padding(padding_mask)
        return None


class VisionEncoder(Encoder):
    """The Transformer with its relative positions."""

    stack_name = "blocks"
    pos_embed: nn.Parameter | None
    position_modules = ("rel_pos_bias", "pos_embed")

    def __init__(self, config: Data2Vec1ModelConfig, image: ImageConfig) -> None:
        super().__init__()
        self.grid = image.grid
        self._positions: dict[tuple[Grid, Device], Tensor] = {}
        self.rel_pos_bias = RelativePositionBias(config, image) if image.relative_positions == "shared" else None
        self.blocks = build_beit_blocks(config, image)
        positions = nn.Parameter(torch.empty(1, math.prod(image.grid), config.dim)) if image.absolute_positions else None
        self.register_parameter("pos_embed", positions)
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps) if image.final_norm else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the parameters that no child module owns."""
        if self.pos_embed is not None:
            cut_normal_(self.pos_embed)

    @override
    def prepare(self, local: LocalFeatures, context: Tensor | None = None) -> EncoderInput:
        x, grid = local.x, local.grid
        assert grid is not None
        if self.pos_embed is not None:
            # The CLS token needs none: it is learned, too.
            x = x + F.pad(resize_absolute(self.pos_embed, self.grid, grid), (0, 0, 1, 0))
        mask = attention_mask(local.padding_mask, context)
        table = None if self.rel_pos_bias is None else self.rel_pos_bias.relative_position_bias_table
        return EncoderInput(x, self._add_table(table, mask, grid), grid)

    @override
    def bias_of(self, block: nn.Module, inputs: EncoderInput) -> Bias | None:
        # Images have no padding to be packed.
        assert inputs.grid is not None and (inputs.bias is None or isinstance(inputs.bias, Tensor))
        return self._add_table(block.attn.relative_position_bias_table, inputs.bias, inputs.grid)  # type: ignore[union-attr,arg-type]

    @override
    def finish(self, x: Tensor) -> Tensor:
        return x if self.norm is None else self.norm(x)

    def _add_table(self, table: Tensor | None, mask: Tensor | None, grid: Grid) -> Tensor | None:
        """One bias for what is added to the logits and what is attended to.

        :param table: (P, H); None = nothing is added.
        """
        if table is None:
            return mask
        index = self._find_positions(grid, table.device)
        # (P, H) -> (H, 1 + S, 1 + S), contiguous: CUDA's fused kernels take no other bias.
        bias = F.embedding(index, resize_relative(table, self.grid, grid)).permute(2, 0, 1).contiguous()
        return bias if mask is None else bias.masked_fill(~mask, -torch.inf)

    def _find_positions(self, grid: Grid, device: Device) -> Tensor:
        """:func:`relative_positions`, computed once; a program that is traced has its own."""
        if torch.compiler.is_compiling():
            return relative_positions(grid, device)
        if (grid, device) not in self._positions:
            with torch.inference_mode(False):  # a validation may be the first to ask, and updates take what it made
                self._positions[grid, device] = relative_positions(grid, device)

        return self._positions[grid, device]


class RelativePositionBias(nn.Module):
    """One attention bias for each head and each offset of two patches, shared by all blocks."""

    def __init__(self, config: Data2Vec1ModelConfig, image: ImageConfig) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.empty(table_size(image), config.num_heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start without a bias."""
        nn.init.zeros_(self.relative_position_bias_table)


def cut_normal_(weight: Tensor) -> None:
    """Draw from N(0, 0.02), cut at one deviation to each side: what is left has a deviation of 0.0108."""
    nn.init.trunc_normal_(weight, std=0.02, a=-0.02, b=0.02)


def relative_positions(grid: Grid, device: Device | None = None) -> Tensor:
    """The row of the table for every pair of tokens, in the original's order: (1 + S, 1 + S) int64.

    The table holds the offsets of two patches row by row, then CLS to patch, patch to CLS, CLS to CLS.
    """
    patches, (height, width) = torch.arange(math.prod(grid), device=device), count_offsets(grid)
    rows, columns = patches // grid[1], patches % grid[1]
    down = rows[:, None] - rows[None, :] + grid[0] - 1
    across = columns[:, None] - columns[None, :] + grid[1] - 1

    # (S, S) -> (1 + S, 1 + S)
    index = F.pad(down * width + across, (1, 0, 1, 0))
    index[0, :] = height * width
    index[:, 0] = height * width + 1
    index[0, 0].fill_(height * width + 2)  # an assignment would copy the number from the host, and wait

    return index
