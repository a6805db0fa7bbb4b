"""The curves of a report: performance profiles, learning curves, sample and time efficiency."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reporting.files import SECONDS_PER_HOUR
from reporting.grid import Comparison
from reporting.published import REFERENCE, Published
from reporting.runs import Run
from reporting.statistics import aggregate, mean_curve, performance_profile

COMPARED = (REFERENCE, "DreamerV3_2023", "IRIS", "DIAMOND")  # published methods drawn as curves
THRESHOLDS = np.linspace(0, 4, 81)  # human-normalised scores of a performance profile

Curve = tuple[np.ndarray, np.ndarray, tuple | None]  # x, mean, (low, high) of its interval


def profiles(comparison: Comparison) -> dict[tuple[str, bool], Curve]:
    """(method, whether ours) -> share of runs above each of THRESHOLDS."""
    chosen = {(label, True): grid for label, grid in comparison.ours.items()}
    chosen |= {(name, False): comparison.published[name] for name in COMPARED if name in comparison.published}
    return {key: (THRESHOLDS, *performance_profile(grid, THRESHOLDS)) for key, grid in chosen.items()}


def learning_curve(runs: Sequence[Run]) -> Curve | None:
    """Mean return over the seeds of a method on a game, at the steps all were evaluated at."""
    evaluated = [{each.step: each.mean for each in run.evaluations} for run in runs if run.evaluations]
    steps = sorted(set.intersection(*map(set, evaluated))) if evaluated else []
    if not steps:
        return None
    return np.asarray(steps), *mean_curve(np.asarray([[run[step] for step in steps] for run in evaluated]))


def efficiency_curve(runs: Sequence[Run], published: Published) -> Curve | None:
    """IQM of human-normalised scores at every step that all `runs`, of benchmark games, were evaluated at."""
    scores = [{each.step: each.mean for each in run.evaluations} for run in runs]
    steps = sorted(set.intersection(*map(set, scores))) if scores else []
    intervals = []
    for step in steps:
        grid: dict[str, list[float]] = {}
        for run, score in zip(runs, scores, strict=True):
            grid.setdefault(run.game, []).append(float(published.normalise(run.game, score[step])))
        intervals.append(aggregate({game: np.asarray(values) for game, values in grid.items()})["iqm"])
    if not intervals:
        return None
    bounds = [[each.low for each in intervals], [each.high for each in intervals]]
    has_bounds = all(low is not None for low in bounds[0])
    mean = np.asarray([each.value for each in intervals])
    return np.asarray(steps), mean, tuple(map(np.asarray, bounds)) if has_bounds else None


def clock_curve(runs: Sequence[Run], curve: Curve) -> Curve | None:
    """The same curve over the mean hours in which the runs reached those steps; None if one has no clock."""
    times = [run.history.seconds_at(curve[0]) for run in runs]
    if any(each is None for each in times):
        return None
    return np.mean(times, axis=0) / SECONDS_PER_HOUR, *curve[1:]
