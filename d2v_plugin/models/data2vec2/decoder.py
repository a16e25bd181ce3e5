"""The convolutional decoder, 1-D for sequences and 2-D for images (data2vec 2.0, section 3.2)."""

from __future__ import annotations

from torch import Tensor, nn

from d2v_plugin.core.batch import Grid
from d2v_plugin.layers.convolution import ConvBlock, convolve_blocks
from d2v_plugin.layers.dropout import Dropout
from d2v_plugin.layers.feed_forward import build_projection
from d2v_plugin.models.data2vec2.frontend_config import DecoderConfig


class ConvDecoder(nn.Module):
    """Predicts the teacher's representation of every token from the kept ones and noise.

    :meth:`convolve` and :meth:`project` are apart because only the masked tokens need the projection.
    """

    compiled_methods = ("convolve",)

    def __init__(self, config: DecoderConfig, dim: int, *, num_spatial_dims: int) -> None:
        """
        :param dim: width of the encoder.
        :param num_spatial_dims: 1 for sequences, 2 for images.
        """
        super().__init__()
        conv_kls = nn.Conv1d if num_spatial_dims == 1 else nn.Conv2d
        self.input_dropout = Dropout(config.input_dropout)
        self.blocks = nn.ModuleList(
            ConvBlock(
                conv_kls(
                    dim if i == 0 else config.dim,
                    config.dim,
                    config.kernel_size,
                    padding=config.kernel_size // 2,
                    groups=config.num_groups,
                )
            )
            for i in range(config.num_layers)
        )
        hidden_dim = int(config.dim * config.projection_ratio)
        proj = build_projection(config.dim, hidden_dim, dim, num_layers=config.projection_layers)
        # The original has a sequence only where it has several layers.
        self.proj = proj[0] if len(proj) == 1 else proj
        self.num_spatial_dims = num_spatial_dims
        self.residual = config.residual

    def convolve(self, x: Tensor, padding_mask: Tensor | None = None, grid: Grid | None = None) -> Tensor:
        """
        :param x: (R, S, D)
        :param padding_mask: (R, S); padded positions act as the zero padding behind a shorter sequence.
        :param grid: (H, W) of the tokens of images; a decoder of sequences takes them row by row.
        :returns: (R, S, C)
        """
        rows, length, _ = x.shape
        if self.num_spatial_dims == 2:
            assert grid is not None
            # (R, S, D) -> (R, H, W, D)
            x = x.unflatten(1, grid)
            padding_mask = None if padding_mask is None else padding_mask.unflatten(1, grid)
        x = convolve_blocks(x, self.blocks, padding_mask, residual=self.residual)

        return x.view(rows, length, -1)

    def project(self, x: Tensor) -> Tensor:
        """
        :param x: (..., C)
        :returns: (..., D)
        """
        return self.proj(x)  # type: ignore[no-any-return]
