"""Convolutions in the layout of the Transformer, channels last: no transpositions, and faster on CPUs and GPUs alike.

At first reading skip all but :class:`ConvBlock` and the functions without underscore.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from d2v_plugin.layers.cpu import recomputes, uses_own_kernels
from d2v_plugin.layers.packing import map_samples, wants_samples
from d2v_plugin.layers.precision import compute_dtype, without_autocast


def convolve(x: Tensor, conv: nn.Conv1d | nn.Conv2d) -> Tensor:
    """Apply a convolution to a sequence or a grid of tokens.

    A sequence is treated as an image of height 1: PyTorch has channels-last convolutions for images only.

    :param x: (R, S, C) or (R, H, W, C)
    :returns: the same with the convolution's output channels (and length), contiguous.
    """
    if isinstance(conv, nn.Conv2d):
        x = x.movedim(-1, 1)
        return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups).movedim(1, -1)
    return _convolve_sequence(x, conv)


def norm_gelu_convolve(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, conv: nn.Conv1d) -> Tensor:
    """``convolve(norm_gelu(x, norm_weight, norm_bias), conv)``, which keeps ``x`` only.

    :param x: (R, S, C)
    """
    if not (recomputes(x) and _wants_products(x, conv)):
        return convolve(norm_gelu(x, norm_weight, norm_bias), conv)
    return _convolve_sequence(x, conv, norm_weight, norm_bias)


def norm_gelu(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """``gelu(layer_norm(x))`` over the channels, which keeps ``x`` only.

    :param x: (..., C)
    :param weight, bias: (C); with them the norm is computed in fp32 also where autocast chose another dtype for ``x``.
    """
    if not recomputes(x):
        if weight is None or bias is None:
            # The kernels compute in fp32 in any case; autocast would also read and write the largest tensors of a model in it.
            with without_autocast(x):
                return F.gelu(F.layer_norm(x, x.shape[-1:]))
        return F.gelu(F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float()).type_as(x))
    return _NormGelu.apply(x, weight, bias)  # type: ignore[no-any-return, no-untyped-call]


class ConvBlock(nn.Sequential):
    """Convolution of the same length or size, layer norm over the channels (no parameters) unless switched off, GELU.

    A sequence of one, for the name of its parameters in the original: ``0.weight``, ``0.bias``.
    """

    def __init__(self, conv: nn.Conv1d | nn.Conv2d, *, norm: bool = True) -> None:
        super().__init__(conv)
        self.norm = norm
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
        return norm_gelu(x) if self.norm else F.gelu(x)


def convolve_blocks(x: Tensor, blocks: Iterable[nn.Module], padding_mask: Tensor | None, *, residual: bool = False) -> Tensor:
    """Run :class:`ConvBlock` s one after the other.

    :param x: (R, S, C), or (R, H, W, C) without padding.
    :param padding_mask: (R, S), True = padding; it acts as the zero padding behind a shorter sequence.
    :param residual: add the input of a block to its output where the numbers of channels agree.
    """
    if padding_mask is not None and wants_samples(x):
        blocks = list(blocks)
        return map_samples(lambda row: convolve_blocks(row, blocks, None, residual=residual), x, padding_mask, length=x.size(1))

    for block in blocks:
        if padding_mask is not None:
            x = x.masked_fill(padding_mask.unsqueeze(-1), 0.0)
        skipped = x
        x = block(x)
        if residual and skipped.size(-1) == x.size(-1):
            x = x + skipped

    return x


def _convolve_sequence(x: Tensor, conv: nn.Conv1d, norm_weight: Tensor | None = None, norm_bias: Tensor | None = None) -> Tensor:
    """
    :param x: (R, S, C)
    :param norm_weight, norm_bias: (C), of a norm and GELU before the convolution, only where products are wanted.
    """
    # (R, S, C) -> (R, C, 1, S)
    x, weight = x.movedim(-1, 1).unsqueeze(2), conv.weight.unsqueeze(2)
    stride, padding = (1, conv.stride[0]), (0, int(conv.padding[0]))
    if _wants_products(x, conv):
        x = _DenseConvolution.apply(  # type: ignore[no-untyped-call]
            x, weight, conv.bias, stride, padding, norm_weight, norm_bias
        )
    else:
        x = F.conv2d(x, weight, conv.bias, stride, padding, groups=conv.groups)

    return x.squeeze(2).movedim(1, -1)


def _wants_products(x: Tensor, conv: nn.Conv1d) -> bool:
    return uses_own_kernels(x) and conv.groups == 1 and conv.in_channels > 1


class _DenseConvolution(torch.autograd.Function):
    """A convolution of sequences whose gradients are matrix products.

    On a CPU oneDNN's backward pass of dense convolutions reaches a quarter (strided) to 60 % (gradient of the weights
    otherwise) of the speed of matrix products. Its forward pass does not lag.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
    ) -> Tensor:
        """
        :param x: (N, C, 1, S), channels last.
        :param weight: (E, C, 1, K)
        :param norm_weight, norm_bias: (C), of a norm and GELU before the convolution; None = there is neither.
        """
        # Autocast does not reach the backward pass.
        dtype = compute_dtype(x)
        weight = weight.to(dtype)
        if norm_weight is None:
            x = x.to(dtype)
        ctx.stride, ctx.padding, ctx.has_bias = stride, padding, bias is not None
        ctx.save_for_backward(x, weight, norm_weight, norm_bias)

        return F.conv2d(_activate(x, norm_weight, norm_bias).to(dtype), weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, norm_weight, norm_bias = ctx.saved_tensors
        grad_x, grad_weight, grad_bias, grad_norm_weight, grad_norm_bias = None, None, None, None, None
        activated = _activate(x, norm_weight, norm_bias).to(weight.dtype)
        if ctx.needs_input_grad[1]:
            grad_weight = _differentiate_weight(grad, activated, weight, ctx.stride[1], ctx.padding[1])
        if ctx.has_bias:
            grad_bias = grad.sum(dim=(0, 2, 3))
        if ctx.needs_input_grad[0]:
            grad_x = _differentiate_input(grad, activated, weight, ctx.stride, ctx.padding)
            del activated
            if norm_weight is not None:
                grad_x, grad_norm_weight, grad_norm_bias = _differentiate_norm_gelu(
                    grad_x.movedim(1, -1).to(x.dtype), x.movedim(1, -1), norm_weight, norm_bias
                )
                grad_x = grad_x.movedim(-1, 1)

        return grad_x, grad_weight, grad_bias, None, None, grad_norm_weight, grad_norm_bias


def _activate(x: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None) -> Tensor:
    return x if norm_weight is None else _compute_norm_gelu(x.movedim(1, -1), norm_weight, norm_bias).movedim(-1, 1)


def _differentiate_input(grad: Tensor, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    if stride[1] == 1 or padding[1] > 0:
        mask = (True, False, False)
        output: Tensor = torch.ops.aten.convolution_backward(
            grad, x, weight, None, stride, padding, (1, 1), False, (0, 0), 1, mask
        )[0]

        return output

    # (N, E, 1, L) -> (N, L, E) and (E, C, 1, K) -> K x (E, C)
    grad, taps = grad.squeeze(2).movedim(1, -1), weight.squeeze(2).permute(2, 0, 1).contiguous()
    grad_x = torch.zeros_like(x.squeeze(2).movedim(1, -1))
    end = stride[1] * (grad.size(1) - 1) + 1
    for i, tap in enumerate(taps):
        for grad_sample, grad_output in zip(grad_x, grad, strict=True):
            grad_sample[i : i + end : stride[1]].addmm_(grad_output, tap)

    return grad_x.movedim(-1, 1).unsqueeze(2)


def _differentiate_weight(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    num_outputs, num_inputs, _, kernel_size = weight.shape
    # (N, C, 1, S) -> (N, P + S + P, C)
    x = F.pad(x.squeeze(2).movedim(1, -1), (0, 0, padding, padding)).contiguous()
    # (N, E, 1, L) -> (N, L, E)
    grad = grad.squeeze(2).movedim(1, -1)
    # What each output position saw, one behind the other: (N, L, K·C), overlapping in memory
    length, window = grad.size(1), kernel_size * num_inputs
    windows = x.as_strided((len(x), length, window), (x.stride(0), stride * num_inputs, 1))

    # At most 64 MB of them are written out.
    step = max(1, 2**24 // (length * window))
    total = grad.new_zeros(num_outputs, window)
    for grads, seen in zip(grad.split(step), windows.split(step), strict=True):
        total.addmm_(grads.reshape(-1, num_outputs).t(), seen.reshape(-1, window))

    return total.view(num_outputs, kernel_size, num_inputs).transpose(1, 2).unsqueeze(2)


def _compute_norm_gelu(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """:func:`norm_gelu` on a CPU, for functions that compute it again."""
    return F.gelu(_normalize(x, weight, bias)[0])


def _differentiate_norm_gelu(
    grad: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients of :func:`norm_gelu` for the same arguments."""
    normed, mean, rstd = _normalize(x, weight, bias)
    grad = torch.ops.aten.gelu_backward(grad, normed)
    has_weight = weight is not None
    gradients: tuple[Tensor, Tensor | None, Tensor | None] = torch.ops.aten.native_layer_norm_backward(
        grad, x, x.shape[-1:], mean, rstd, weight, bias, [True, has_weight, has_weight]
    )

    return gradients


def _normalize(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    normed: tuple[Tensor, Tensor, Tensor] = torch.native_layer_norm(x, x.shape[-1:], weight, bias, 1e-5)
    return normed


class _NormGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        return _compute_norm_gelu(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return _differentiate_norm_gelu(grad, *ctx.saved_tensors)
