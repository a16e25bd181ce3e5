"""Images: BEiT with one CLS token and relative positions.

Differences from fairseq's ``data2vec_vision``: its debugging output and ``assert`` are gone, tables for each block work, and the
head (``final_proj``), which it creates but never applies, is applied, as in the code that the published models come from
(github.com/facebookresearch/data2vec_vision). ``head_layers: 0`` has no head, which is what fairseq's code computes. Weights
start as in that repository, too: fairseq's are twice as large, and its CLS token and mask embedding have N(0.02, 1), because it
passes the deviation as the mean.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from fairseq2.device import Device
from torch import Tensor, nn
from typing_extensions import override

from d2v_plugin.layers.attention import Bias
from d2v_plugin.models.base import LocalFeatures
from d2v_plugin.models.data2vec1.base import Data2Vec1Model, Encoder, EncoderInput, attention_mask
from d2v_plugin.models.data2vec1.blocks import build_beit_blocks, table_size
from d2v_plugin.models.data2vec1.config import Data2Vec1ModelConfig, ImageConfig
from d2v_plugin.models.patches import PatchEmbedding, refuse_padding


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
        size = self.image.image_size
        if inputs.shape[-2:] != (size, size):
            shape = tuple(inputs.shape)
            raise ValueError(f"`inputs` must have the height and width {size} (`image_size`), but has the shape {shape}.")
        x = self.patch_embed(inputs)

        # The more precise of both, which under autocast is that of the parameters.
        return torch.cat([self.cls_emb.expand(x.size(0), -1, -1), x], dim=1)

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
    positions: Tensor
    pos_embed: nn.Parameter | None
    position_modules = ("rel_pos_bias", "pos_embed")

    def __init__(self, config: Data2Vec1ModelConfig, image: ImageConfig) -> None:
        super().__init__()
        self.side = image.side
        self.register_buffer("positions", relative_positions(image.side), persistent=False)
        self.rel_pos_bias = RelativePositionBias(config, image) if image.relative_positions == "shared" else None
        self.blocks = build_beit_blocks(config, image)
        positions = nn.Parameter(torch.empty(1, image.side**2, config.dim)) if image.absolute_positions else None
        self.register_parameter("pos_embed", positions)
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps) if image.final_norm else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the parameters that no child module owns."""
        self.reset_non_persistent_buffers()
        if self.pos_embed is not None:
            cut_normal_(self.pos_embed)

    def reset_non_persistent_buffers(self) -> None:
        """Compute again what no checkpoint has: fairseq2's call for models that come from the meta device."""
        self.positions = relative_positions(self.side, self.positions.device)

    @override
    def prepare(self, local: Tensor, padding_mask: Tensor | None = None, context: Tensor | None = None) -> EncoderInput:
        if self.pos_embed is not None:
            # The CLS token needs none: it is learned, too.
            local = local + F.pad(self.pos_embed, (0, 0, 1, 0))
        mask = attention_mask(padding_mask, context)
        table = None if self.rel_pos_bias is None else self.rel_pos_bias.relative_position_bias_table
        return EncoderInput(local, self._add_table(table, mask))

    @override
    def bias_of(self, block: nn.Module, bias: Bias | None) -> Bias | None:
        # Images have no padding to be packed.
        assert bias is None or isinstance(bias, Tensor)
        return self._add_table(block.attn.relative_position_bias_table, bias)  # type: ignore[union-attr,arg-type]

    @override
    def finish(self, x: Tensor) -> Tensor:
        return x if self.norm is None else self.norm(x)

    def _add_table(self, table: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """One bias for what is added to the logits and what is attended to.

        :param table: (P, H); None = nothing is added.
        """
        if table is None:
            return mask
        # (P, H) -> (H, 1 + S, 1 + S), contiguous: CUDA's fused kernels take no other bias.
        bias = F.embedding(self.positions, table).permute(2, 0, 1).contiguous()
        return bias if mask is None else bias.masked_fill(~mask, -torch.inf)


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
    index[0, 0].fill_(width * width + 2)  # an assignment would copy the number from the host, and wait

    return index
