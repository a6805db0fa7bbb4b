"""Linear layers by oneDNN against PyTorch's."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from tests_support import uniform

from sub_models import linear as module
from sub_models.linear import Linear, linear, suits_onednn


@pytest.mark.parametrize("rows", [3, 5000])
@pytest.mark.parametrize("has_bias", [False, True])
def test_linear_and_its_gradients(rows: int, has_bias: bool) -> None:
    x = uniform(2, rows, 6) - 0.5
    weight, bias = uniform(7, 6, seed=1) - 0.5, uniform(7, seed=2) if has_bias else None
    results = []
    for function in (linear, F.linear):
        inputs = [value.clone().requires_grad_() for value in (x, weight, bias) if value is not None]
        with mock.patch.object(module, "LEAST_WORK", 0):
            output = function(*inputs)
            with torch.no_grad():
                torch.testing.assert_close(function(*inputs), output)
        results.append([output, *torch.autograd.grad(output.square().sum(), inputs)])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5 * plain.abs().max().item())


def test_onednn_takes_large_float32_products_on_a_cpu_only() -> None:
    x, weight = torch.zeros(256, 128), torch.zeros(128, 128)
    assert suits_onednn(x, weight) == module.HAS_ONEDNN_PRODUCTS
    assert not suits_onednn(x[:1], weight)
    assert not suits_onednn(x.bfloat16(), weight.bfloat16())
    assert not suits_onednn(x.to("meta"), weight.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not suits_onednn(x, weight)
        assert Linear(128, 128)(x).dtype == torch.bfloat16
