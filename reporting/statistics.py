"""Statistics over a grid of runs, after Agarwal et al. 2021 (arXiv 2108.13264), through scipy.

A grid is a dict: game -> array (runs,) of human-normalised scores. Intervals over a grid are the 95 %
percentile intervals of a stratified bootstrap: the runs of each game are resampled on their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 5_000
FEWEST = 10  # runs of a grid: with fewer such an interval is far too narrow
BATCH = 500  # resamples held in memory at once
TRIM = 0.25  # share of runs that the interquartile mean drops at either end
HUMAN = 1.0  # human-normalised score of a person

Grid = Mapping[str, np.ndarray]


class Interval(NamedTuple):
    """A statistic and its 95 % interval."""

    value: float
    low: float | None = None  # None where there are too few runs for an interval
    high: float | None = None


def bootstrap(samples: Sequence[np.ndarray], statistic: Callable[..., np.ndarray]) -> tuple | None:
    """Return percentile bounds (low, high) of `statistic`, each sample resampled along its last axis.

    `statistic` maps arrays (..., runs_i) to (outputs, ...). None if a sample has fewer than two runs, or
    all of them fewer than FEWEST.
    """
    sizes = [sample.shape[-1] for sample in samples]
    if min(sizes) < 2 or sum(sizes) < FEWEST:
        return None
    result = stats.bootstrap(
        samples,
        lambda *resampled, axis=-1: statistic(*resampled),
        n_resamples=RESAMPLES,
        batch=BATCH,
        vectorized=True,
        axis=-1,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return result.confidence_interval.low, result.confidence_interval.high


def _aggregate_rows(*games: np.ndarray) -> np.ndarray:
    """Mean, median, IQM and optimality gap, (4, ...), of one array (..., runs) per game."""
    game_means = np.stack([runs.mean(-1) for runs in games])
    gaps = np.stack([HUMAN - np.minimum(runs, HUMAN).mean(-1) for runs in games])
    iqm = stats.trim_mean(np.concatenate(games, -1), TRIM, axis=-1)
    return np.stack([game_means.mean(0), np.median(game_means, 0), iqm, gaps.mean(0)])


def aggregate(grid: Grid) -> dict[str, Interval]:
    """Return mean, median, IQM and optimality gap of a grid with their intervals.

    Mean and median are over game means, the interquartile mean over all runs, the optimality gap
    over runs cut at the human score.
    """
    games = list(grid.values())
    values, bounds = _aggregate_rows(*games), bootstrap(games, _aggregate_rows)
    names = ("mean", "median", "iqm", "optimality_gap")
    columns = [values, *(bounds or ())]
    return {
        name: Interval(*map(float, row)) for name, row in zip(names, zip(*columns, strict=True), strict=True)
    }


def performance_profile(grid: Grid, thresholds: np.ndarray) -> tuple[np.ndarray, tuple | None]:
    """Return the share of runs above each threshold, every game weighing the same, and its bounds."""

    def profile(*games: np.ndarray) -> np.ndarray:
        shares = [(runs[..., None, :] > thresholds[:, None]).mean(-1) for runs in games]
        return np.moveaxis(np.mean(shares, axis=0), -1, 0)

    games = list(grid.values())
    return profile(*games), bootstrap(games, profile)


def mean_curve(curves: np.ndarray) -> tuple[np.ndarray, tuple | None]:
    """Return the mean over seeds of curves (seeds, steps), and the lowest and highest if there are two."""
    return curves.mean(0), (curves.min(0), curves.max(0)) if len(curves) > 1 else None


class Difference(NamedTuple):
    """The samples whose means tell how two methods differ."""

    samples: list[np.ndarray]  # independent; the difference is the sum of their means
    pairing: str  # how it was made, in words

    @property
    def is_paired(self) -> bool:
        """Whether it is one sample, of differences."""
        return len(self.samples) == 1

    @property
    def interval(self) -> Interval:
        """The difference with Student's interval, if each sample has two values or more."""
        return sum_of_means(self.samples)


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference:
    """Return the mean of `second` minus `first`, both seed -> score: paired if two seeds or more match.

    Else it is Welch's. The interval is Student's, not a bootstrap: with two or three seeds a bootstrap
    is far too narrow to say whether a change helped. With too few seeds there is none.
    """
    matching = sorted(set(first) & set(second))
    if len(matching) >= 2:
        changes = np.asarray([second[seed] - first[seed] for seed in matching])
        return Difference([changes], f"paired by seed, {len(matching)} pairs")
    samples = [np.asarray(list(second.values()), float), -np.asarray(list(first.values()), float)]
    return Difference(samples, f"{len(first)} and {len(second)} seeds, unpaired")


def mean_difference(differences: Sequence[Difference]) -> Interval:
    """Return the mean of independent differences, with its interval if each has one."""
    return sum_of_means([sample / len(differences) for each in differences for sample in each.samples])


def sum_of_means(samples: Sequence[np.ndarray]) -> Interval:
    """Return the sum of the means of independent samples, with Welch and Satterthwaite's interval."""
    value = float(sum(sample.mean() for sample in samples))
    if min(map(len, samples)) < 2:
        return Interval(value)
    squares = np.square([stats.sem(sample) for sample in samples])
    if not squares.any():
        return Interval(value, value, value)
    freedom = squares.sum() ** 2 / (squares**2 / [len(sample) - 1 for sample in samples]).sum()
    reach = np.sqrt(squares.sum()) * stats.t.ppf((1 + CONFIDENCE) / 2, freedom)
    return Interval(value, float(value - reach), float(value + reach))
