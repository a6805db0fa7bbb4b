"""experiments/fused_attention.py: attention as fused kernels compute it, and what is recorded of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from experiments import fused_attention
from experiments.fused_attention import attend_as_fused
from sub_models.fast_forms import attend
from utils import UserError


def test_fused_attention_is_attention_but_for_rounding() -> None:
    torch.manual_seed(0)
    exact = [torch.randn(3, 2, 6, 8).bfloat16().float().requires_grad_() for _ in range(3)]
    rounded = [part.detach().bfloat16().requires_grad_() for part in exact]
    weights = torch.randn(3, 2, 6, 8)
    for causal in (True, False):
        expected = attend(*exact, causal, 0.0)
        found = attend_as_fused(*rounded, causal, 0.0)
        torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)
        wanted = torch.autograd.grad((expected * weights).sum(), exact)
        gradients = torch.autograd.grad((found.float() * weights).sum(), rounded)
        for gradient, want in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(gradient.float(), want, rtol=0.05, atol=0.03)


def test_fused_gradients_do_not_vanish_where_a_head_sees_one_key_alone() -> None:
    torch.manual_seed(0)
    query = 16 + torch.randn(8, 2, 16, 8)
    key = torch.linspace(-1, 1, 16).view(16, 1) * 64 + torch.randn(8, 2, 16, 8)
    parts = [part.bfloat16().requires_grad_() for part in (query, key, torch.randn_like(key))]
    weights = torch.randn(8, 2, 16, 8)
    largest = []
    for way in (attend, attend_as_fused):
        gradients = torch.autograd.grad((way(*parts, False, 0.1).float() * weights).sum(), parts)
        largest.append([float(gradient.abs().max()) for gradient in gradients[:2]])
    assert largest[0] == [0.0, 0.0] and min(largest[1]) > 0.1


def test_ways_are_compared(tmp_path: Path) -> None:
    short = ["--frames", "100", "--updates", "2", "--log-every", "1", "--out", str(tmp_path)]
    fused_attention.main(short)
    record = json.loads((tmp_path / "saturated_attention.json").read_text())
    curves = record["curves"]
    assert [point["update"] for point in curves["fused"]] == [0, 1, 2] and set(curves) == set(
        fused_attention.WAYS
    )
    assert len({curve[0]["largest_q"] for curve in curves.values()}) == 1
    assert len({curve[2]["largest_q"] for curve in curves.values()}) == 3
    assert all(point["KL"] > 0 for curve in curves.values() for point in curve[1:])
    assert (tmp_path / "saturated_attention.png").stat().st_size > 10_000
    with pytest.raises(UserError, match="no such folder"):
        fused_attention.main([*short, "--agent", str(tmp_path / "none")])
