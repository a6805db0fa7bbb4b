"""Linear layers, whose float32 products a CPU may compute faster than `torch.mm` does.

PyTorch multiplies float32 matrices by MKL, which leaves half of the vectors of an AMD processor unused.
oneDNN, by which it multiplies bfloat16, uses all, and takes float32 as well.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAST_WORK = 2**21  # multiplications: for fewer the detour takes longer than it saves
MANY_ROWS = 4096  # beyond, oneDNN is slower than MKL at the sum over rows that a weight's gradient is


def has_onednn_products() -> bool:
    """Whether this PyTorch has oneDNN's float32 product for this processor."""
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    return is_x86 and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


HAS_ONEDNN_PRODUCTS = has_onednn_products()


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x·weightᵀ + bias: x (..., I), weight (O, I), bias (O,) → (..., O)."""
    if not suits_onednn(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return LinearFunction.apply(x.flatten(0, -2), weight, bias).unflatten(0, x.shape[:-1])
    return product(x, weight, bias)


def suits_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether x·weightᵀ is a float32 product on a CPU, large enough, that no compiler sees."""
    return (
        not torch.compiler.is_compiling()
        and HAS_ONEDNN_PRODUCTS
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() * weight.shape[0] >= LEAST_WORK
        and not torch.is_autocast_enabled("cpu")
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return linear(x, weight, bias) by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class LinearFunction(torch.autograd.Function):
    """linear(x, weight, bias) of rows x (M, I), with its gradients, by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = product(gradient, weight.mT)
        if ctx.needs_input_grad[1]:
            of_weight = gradient.mT @ x if len(x) > MANY_ROWS else product(gradient.mT, x.mT)
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum(0)
        return of_x, of_weight, of_bias
