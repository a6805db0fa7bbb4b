"""experiments/video.py: what it reports of several seeds, and its figure."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from experiments.video import DATA, draw, summarise


def judgement(mse: float) -> dict:
    found = {"mse": mse, "ssim": 0.5, "prior_perplexity": 2.0, "seconds": 1.5, "by_horizon": {"mse": [mse]}}
    return {"predictors": {"STORM": found, "last frame": {"mse": 1.0, "ssim": 0.1, "seconds": 0.0}}}


@pytest.mark.parametrize("data", DATA)
def test_seeds_are_averaged_with_their_interval(data: str) -> None:
    summary = summarise([judgement(mse) for mse in (1.0, 2.0, 6.0)])
    low, high = stats.t.interval(0.95, 2, 3.0, stats.sem([1.0, 2.0, 6.0]))
    assert summary["STORM"]["mse"]["mean"] == 3
    assert summary["STORM"]["mse"]["half_interval"] == pytest.approx((high - low) / 2)
    assert "by_horizon" not in summary["STORM"] and "prior_perplexity" not in summary["last frame"]
    assert len(draw(summary, data).axes) == (4 if data == "twins" else 3)
    assert "half_interval" not in summarise([judgement(1.0)])["STORM"]["mse"]
    assert np.isfinite(summary["last frame"]["mse"]["half_interval"])
