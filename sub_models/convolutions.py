"""The image networks' convolutions, 4×4 of stride 2 and padding 1, in a form that is fast on a CPU.

With few channels a library does well the strided convolution and the gradient of its weights. It does
badly what leads from the small maps to the large ones: the transposed convolution, which is also the strided
one's gradient for its input. `enlarge` computes that as a 2×2 convolution.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW_CHANNELS = 32  # of the small maps; with more PyTorch's own is as fast (docs/performance.md)


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """Return conv2d(x, weight, stride=2, padding=1).

    x (M, I, 2h, 2w), weight (O, I, 4, 4) → (M, O, h, w).
    """
    if is_rearranged(x):
        return Convolution.apply(x, weight.to(x.dtype))
    return F.conv2d(x, weight, None, 2, 1)


def transposed_convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return conv_transpose2d(x, weight, bias, stride=2, padding=1).

    x (M, I, h, w), weight (I, O, 4, 4), bias (O,) → (M, O, 2h, 2w).
    """
    if is_rearranged(x):
        return TransposedConvolution.apply(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    return F.conv_transpose2d(x, weight, bias, 2, 1)


class ConvTranspose2d(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` of 4×4, stride 2 and padding 1 by `transposed_convolve`."""

    def __init__(self, channels_in: int, channels_out: int, bias: bool = True) -> None:
        super().__init__(channels_in, channels_out, 4, 2, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (M, I, h, w) → (M, O, 2h, 2w)."""
        return transposed_convolve(x, self.weight, self.bias)


def is_rearranged(x: Tensor) -> bool:
    """Whether convolutions of these maps are computed here: on a CPU, where nothing compiles them."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def enlarge(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return conv_transpose2d(x, weight, bias, stride=2, padding=1), without a gradient of its own.

    Each 2×2 neighbourhood of x makes a 2×2 block of the result, which is one convolution with four times
    the channels; its blocks reach one pixel over the border.
    """
    if x.shape[1] > FEW_CHANNELS:
        return F.conv_transpose2d(x, weight, bias, 2, 1)
    channels = weight.shape[1]
    # Row 2p + a of the kernel leads from row i of x to row a of block i + p; so for columns.
    blocks = weight.unflatten(3, (2, 2)).unflatten(2, (2, 2))  # (I, O, p, a, q, b)
    blocks = blocks.flip(2, 4).permute(3, 5, 1, 0, 2, 4).flatten(0, 2)  # (2·2·O, I, 2, 2)
    made = F.conv2d(
        x,
        blocks.contiguous(memory_format=torch.channels_last),
        None if bias is None else bias.repeat(4),
        padding=1,
    )
    made = made.permute(0, 2, 3, 1).unflatten(3, (2, 2, channels))  # (M, h + 1, w + 1, a, b, O)
    pixels = made.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return pixels[:, 1:-1, 1:-1].contiguous().permute(0, 3, 1, 2)


def weight_gradient(large: Tensor, small: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of a weight between large and small maps, of which one is a gradient."""
    return torch.ops.aten.convolution_backward(
        small, large, weight, None, [2, 2], [1, 1], [1, 1], False, [0, 0], 1, [False, True, False]
    )[1]


class Convolution(torch.autograd.Function):
    """`convolve`, its input's gradient by `enlarge`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, None, 2, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        x, weight = ctx.saved_tensors
        of_input = enlarge(gradient, weight, None) if ctx.needs_input_grad[0] else None
        return of_input, weight_gradient(x, gradient, weight)


class TransposedConvolution(torch.autograd.Function):
    """`transposed_convolve` by `enlarge`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return enlarge(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        # PyTorch's own gradient of the bias takes longer than both others in bfloat16.
        of_bias = gradient.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return F.conv2d(gradient, weight, None, 2, 1), weight_gradient(gradient, x, weight), of_bias
