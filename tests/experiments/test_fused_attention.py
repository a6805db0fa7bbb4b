"""experiments/fused_attention.py: attention as fused kernels compute it, and what is recorded of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend

from experiments import fused_attention
from experiments.fused_attention import FusedAttention, Settings, attend_as_fused, attend_by, bias, biases
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


def test_only_what_is_divided_first_has_a_bias() -> None:
    found = biases(Settings(heads=32), torch.device("cpu"))
    assert found.pop("fused, divided first") == pytest.approx(1.6e-3, rel=0.2)
    assert found.pop("products") == 0 and abs(found.pop("fused, rounded first")) < 2e-4
    assert not found
    assert bias(attend_by(SDPBackend.MATH), Settings(heads=32), torch.device("cpu")) == pytest.approx(0)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["--log_every", "0"],
            "'0': must be a whole number in .* see python -m experiments.fused_attention --h",
        ),
        (["--dropped", "1"], "'1': must be a number in "),
        (["--agent", "/nowhere"], "no such folder"),
    ],
)
def test_what_cannot_be_is_refused(arguments: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        fused_attention.main(arguments)


def test_ways_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[tuple[float, float]] = []
    forward = FusedAttention.forward

    def counted(*arguments: Any) -> torch.Tensor:
        shares.append(arguments[-1])
        return forward(*arguments)

    monkeypatch.setattr(FusedAttention, "forward", staticmethod(counted))
    monkeypatch.setattr(fused_attention, "biases", lambda *_: {"products": 0.0})
    short = ["--frames", "100", "--updates", "2", "--log_every", "1", "--out", str(tmp_path)]
    fused_attention.main(short)
    record = json.loads((tmp_path / "saturated_attention.json").read_text())
    curves = record["curves"]
    assert list(curves) == list(fused_attention.WAYS) and record["runs_at_a_time"] == 1
    assert all([point["update"] for point in curve] == [0, 1, 2] for curve in curves.values())
    assert len({curve[0]["largest_q"] for curve in curves.values()}) == 1
    assert all(point["KL"] > 0 for curve in curves.values() for point in curve[1:])
    blocks = 2
    assert shares == [(1.0, 0.9)] * 3 * blocks + [(0.9, 1.0)] * 3 * blocks  # updates are made after logging
    assert (tmp_path / "saturated_attention.png").stat().st_size > 10_000
