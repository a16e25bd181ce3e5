"""Convolutions in the layout of the Transformer, channels last: no transpositions, and faster on CPUs and GPUs alike."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def convolve(x: Tensor, conv: nn.Conv1d | nn.Conv2d) -> Tensor:
    """Apply a convolution to a sequence or a grid of tokens.

    A sequence is treated as an image of height 1: PyTorch has channels-last convolutions for images only.

    :param x: (R, S, C) or (R, H, W, C)
    :returns: the same with the convolution's output channels (and length), contiguous.
    """
    x = x.movedim(-1, 1)
    if isinstance(conv, nn.Conv2d):
        return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups).movedim(1, -1)

    weight = conv.weight.unsqueeze(2)
    stride, padding = (1, conv.stride[0]), (0, int(conv.padding[0]))
    x = F.conv2d(x.unsqueeze(2), weight, conv.bias, stride, padding, groups=conv.groups)

    return x.squeeze(2).movedim(1, -1)


class ConvBlock(nn.Sequential):
    """Convolution of the same length or size, layer norm over the channels (no parameters), GELU.

    A sequence of one, for the name of its parameters in the original: ``0.weight``, ``0.bias``.
    """

    def __init__(self, conv: nn.Conv1d | nn.Conv2d) -> None:
        super().__init__(conv)
        self.trims_end = conv.kernel_size[0] % 2 == 0

    def forward(self, x: Tensor) -> Tensor:
        """
        :param x: (R, S, C) or (R, H, W, C)
        :returns: the same with the convolution's output channels.
        """
        x = convolve(x, self[0])  # type: ignore[arg-type]
        if self.trims_end:
            for dim in range(1, x.dim() - 1):
                x = x.narrow(dim, 0, x.size(dim) - 1)

        return F.gelu(F.layer_norm(x, x.shape[-1:]))
