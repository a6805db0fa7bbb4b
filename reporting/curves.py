"""The curves of a report as frames (x, value, value_low, value_high): profiles and learning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pandas import DataFrame

from reporting.grid import Comparison, by_label, named
from reporting.published import REFERENCE
from reporting.runs import Run
from reporting.statistics import mean_curve, performance_profile

COMPARED = (REFERENCE, "DreamerV3_2023", "IRIS", "DIAMOND")  # published methods drawn as curves
THRESHOLDS = np.linspace(0, 4, 81)  # human-normalised scores of a performance profile


def _curve(places: Sequence[float], values: np.ndarray, bounds: tuple | None) -> DataFrame:
    low, high = (np.nan, np.nan) if bounds is None else bounds
    return DataFrame({"x": places, "value": values, "value_low": low, "value_high": high})


def profiles(comparison: Comparison) -> dict[str, DataFrame]:
    """Return the share of runs above each of THRESHOLDS, by "<method> (here)" and "<method>, published"."""
    grids = {f"{label} (here)": grid for label, grid in comparison.ours.items()}
    grids |= {f"{name}, published": grid for name, grid in comparison.published.items() if name in COMPARED}
    return {name: _curve(THRESHOLDS, *performance_profile(grid, THRESHOLDS)) for name, grid in grids.items()}


def learning_curves(runs: Sequence[Run], scores: DataFrame) -> tuple[dict[str, DataFrame], list[str]]:
    """Return each method's mean return, over its seeds, at the steps that all its runs were evaluated at.

    Also which runs are in no curve, and why.

    Args:
        runs: of one game. scores: of these runs.
    """
    curves, missing = {}, []
    for label, group in by_label(runs).items():
        own = scores[scores.run.isin([run.name for run in group])]
        missing += named(label, [run for run in group if run.name not in set(own.run)], "no score to draw")
        grid = own.pivot(index="step", columns="seed", values="mean").dropna()
        if len(grid):
            curves[label] = _curve(grid.index, *mean_curve(grid.to_numpy().T))
        elif len(own):
            missing.append(
                f"{label}: no step that all its runs were evaluated at: {', '.join(own.run.unique())}"
            )
    return curves, missing
