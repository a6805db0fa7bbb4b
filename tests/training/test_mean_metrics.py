"""Means of training metrics."""

from __future__ import annotations

import math

import torch

from training.metrics import MeanMetrics


def test_means_are_of_the_finite_values_since_the_last_reading() -> None:
    metrics = MeanMetrics(torch.device("cpu"))
    for loss, other, bad in ((1.0, math.inf, 0), (4.0, 2.0, 1), (math.nan, math.nan, 2)):
        metrics.add(
            "Model",
            {"loss": torch.tensor(loss), "other": torch.tensor(other), "bad_updates": torch.tensor(bad)},
        )
    assert metrics.not_finite("Model") == ["Model/loss", "Model/other"] and metrics.not_finite("None") == []
    assert metrics.read() == {"Model/loss": 2.5, "Model/other": 2.0, "Model/bad_updates": 2.0}
    assert math.isnan(metrics.read()["Model/loss"])  # the latest, where there was none since
    metrics.add(
        "Model", {"loss": torch.tensor(7.0), "other": torch.tensor(math.inf), "bad_updates": torch.tensor(3)}
    )
    resumed = MeanMetrics(torch.device("cpu"))
    resumed.load_state_dict(metrics.state_dict())
    assert resumed.read() == {"Model/loss": 7.0, "Model/other": math.inf, "Model/bad_updates": 3.0}
