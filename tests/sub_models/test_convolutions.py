"""The rearranged convolutions against PyTorch's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sub_models.convolutions import FEW_CHANNELS, convolve, transposed_convolve

TOLERANCES = {torch.float64: 1e-12, torch.bfloat16: 0.02}  # of the norm


def result_and_gradients(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Return what a function makes of its inputs, and the gradients of a random sum of it."""
    inputs = [value.detach().clone().requires_grad_() for value in inputs]
    result = function(*inputs)
    weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(0)).to(result.dtype)
    return [result.detach(), *torch.autograd.grad((result * weights).sum(), inputs)]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("small", "large"), [(5, 3), (FEW_CHANNELS + 1, 2)])
@pytest.mark.parametrize("transposed", [False, True])
def test_rearranged_convolutions_and_their_gradients(
    dtype: torch.dtype, small: int, large: int, transposed: bool
) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(small, large, 4, 4, generator=generator).to(dtype)
    if transposed:
        inputs = [torch.randn(2, small, 4, 4, generator=generator).to(dtype), weight]
        inputs.append(torch.randn(large, generator=generator).to(dtype))
        ours, plain = transposed_convolve, lambda *values: F.conv_transpose2d(*values, stride=2, padding=1)
    else:
        inputs = [torch.randn(2, large, 8, 8, generator=generator).to(dtype), weight]
        ours, plain = convolve, lambda *values: F.conv2d(*values, stride=2, padding=1)
    results = zip(result_and_gradients(ours, inputs), result_and_gradients(plain, inputs), strict=True)
    for actual, expected in results:
        assert actual.dtype == dtype and actual.shape == expected.shape
        assert (actual - expected).norm() <= TOLERANCES[dtype] * expected.norm()


def test_images_need_no_gradient() -> None:
    images, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 4, 4, requires_grad=True)
    convolve(images, weight).sum().backward()
    assert images.grad is None and weight.grad is not None
