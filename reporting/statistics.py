"""Statistics over a grid of runs, after Agarwal et al. 2021 (arXiv 2108.13264), through scipy.

A grid is a dict: game -> array (runs,) of human-normalised scores. Every interval is the 95 %
percentile interval of a stratified bootstrap: the runs of each game are resampled on their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

AGGREGATES = ("mean", "median", "iqm", "optimality_gap")
CONFIDENCE = 0.95
RESAMPLES = 5_000
BATCH = 500  # resamples held in memory at once
TRIM = 0.25  # share of runs that the interquartile mean drops at either end
HUMAN = 1.0  # human-normalised score of a person

Grid = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Interval:
    value: float
    low: float | None = None  # None where there are too few runs for an interval
    high: float | None = None


def bootstrap(samples: Sequence[np.ndarray], statistic: Callable[..., np.ndarray]) -> tuple | None:
    """Percentile bounds (low, high) of `statistic(*samples)`, each sample resampled along its last axis.

    `statistic` maps arrays (..., runs_i) to (outputs, ...). None if a sample has fewer than two runs.
    """
    if min(sample.shape[-1] for sample in samples) < 2:
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
    """mean, median, IQM and optimality gap, (4, ...), of one array (..., runs) per game."""
    game_means = np.stack([runs.mean(-1) for runs in games])
    gaps = np.stack([HUMAN - np.minimum(runs, HUMAN).mean(-1) for runs in games])
    all_runs = np.concatenate(games, -1)
    return np.stack(
        [
            game_means.mean(0),
            np.median(game_means, 0),
            stats.trim_mean(all_runs, TRIM, axis=-1),
            gaps.mean(0),
        ]
    )


def aggregate(grid: Grid) -> dict[str, Interval]:
    """The four AGGREGATES of a grid with their intervals.

    Mean and median are over game means, the interquartile mean over all runs, the optimality gap
    over runs cut at the human score.
    """
    games = list(grid.values())
    values = _aggregate_rows(*games)
    bounds = bootstrap(games, _aggregate_rows)
    if bounds is None:
        return {name: Interval(float(value)) for name, value in zip(AGGREGATES, values, strict=True)}
    return {name: Interval(*map(float, row)) for name, *row in zip(AGGREGATES, values, *bounds, strict=True)}


def aggregate_means(means: Mapping[str, float]) -> dict[str, Interval]:
    """Mean and median of game means; all that can be said of a method without per-run scores."""
    values = np.asarray(list(means.values()))
    return {"mean": Interval(float(values.mean())), "median": Interval(float(np.median(values)))}


def superhuman(means: Mapping[str, float]) -> int:
    """Number of games whose mean human-normalised score is above a person's."""
    return sum(mean > HUMAN for mean in means.values())


def game_means(grid: Grid) -> dict[str, float]:
    """game -> mean score over its runs."""
    return {game: float(np.mean(runs)) for game, runs in grid.items()}


def performance_profile(grid: Grid, thresholds: np.ndarray) -> tuple[np.ndarray, tuple | None]:
    """Share of runs above each threshold, every game weighing the same, and its bounds; all (thresholds,)."""

    def profile(*games: np.ndarray) -> np.ndarray:
        shares = [(runs[..., None, :] > thresholds[:, None]).mean(-1) for runs in games]
        return np.moveaxis(np.mean(shares, axis=0), -1, 0)

    games = list(grid.values())
    return profile(*games), bootstrap(games, profile)


def probability_of_improvement(ours: Grid, theirs: Grid) -> Interval:
    """Probability that a run of `ours` beats one of `theirs` on a random game of both; a tie counts half."""
    games = sorted(set(ours) & set(theirs))

    def probability(*samples: np.ndarray) -> np.ndarray:
        pairs = zip(samples[: len(games)], samples[len(games) :], strict=True)
        return np.mean([_chance_to_win(first, second) for first, second in pairs], axis=0)[None]

    samples = [ours[game] for game in games] + [theirs[game] for game in games]
    value, bounds = float(probability(*samples)[0]), bootstrap(samples, probability)
    return Interval(value) if bounds is None else Interval(value, float(bounds[0][0]), float(bounds[1][0]))


def _chance_to_win(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The Mann-Whitney statistic as a probability: (..., n) against (..., m) to (...)."""
    first, second = first[..., :, None], second[..., None, :]
    return ((first > second) + (first == second) / 2).mean((-2, -1))


def mean_curve(curves: np.ndarray) -> tuple[np.ndarray, tuple | None]:
    """Mean over seeds of curves (seeds, steps), and its bounds, each (steps,)."""
    bounds = bootstrap([curves.T], lambda resampled: resampled.mean(-1))
    return curves.mean(0), bounds


@dataclass(frozen=True)
class Difference:
    interval: Interval  # of the mean difference
    pairing: str  # how it was made, in words
    standard_error: float | None = None  # None with too few seeds
    degrees_of_freedom: float | None = None


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference:
    """Mean of `second` minus `first`, both seed -> score: paired if two seeds or more match, else Welch's.

    The interval is Student's, not a bootstrap: with two or three seeds a bootstrap is far too
    narrow to say whether a change helped. With too few seeds there is none.
    """
    matching = sorted(set(first) & set(second))
    if len(matching) >= 2:
        changes = np.asarray([second[seed] - first[seed] for seed in matching])
        error = float(stats.sem(changes))
        return _student(changes.mean(), f"paired by seed, {len(matching)} pairs", error, len(changes) - 1)
    old, new = (np.asarray(list(scores.values()), dtype=float) for scores in (first, second))
    counts = f"{len(old)} and {len(new)} seeds, unpaired"
    if min(len(old), len(new)) < 2:
        return Difference(Interval(float(new.mean() - old.mean())), counts)
    errors = np.asarray([stats.sem(old) ** 2, stats.sem(new) ** 2])
    freedom = _welch_freedom(errors, np.asarray([len(old) - 1, len(new) - 1]))
    return _student(new.mean() - old.mean(), counts, float(np.sqrt(errors.sum())), freedom)


def mean_difference(differences: Sequence[Difference]) -> Interval:
    """Mean of independent differences, with Student's interval if each has a standard error."""
    value = float(np.mean([each.interval.value for each in differences]))
    if any(each.standard_error is None for each in differences):
        return Interval(value)
    errors = np.asarray([each.standard_error**2 for each in differences])
    freedom = _welch_freedom(errors, np.asarray([each.degrees_of_freedom for each in differences]))
    return _student(value, "", float(np.sqrt(errors.sum())) / len(differences), freedom).interval


def _welch_freedom(squared_errors: np.ndarray, freedoms: np.ndarray) -> float:
    """Welch-Satterthwaite degrees of freedom of a sum of independent means."""
    if not squared_errors.any():
        return float(freedoms.sum())
    return float(squared_errors.sum() ** 2 / (squared_errors**2 / freedoms).sum())


def _student(value: float, pairing: str, error: float, freedom: float) -> Difference:
    reach = error * float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom))
    interval = Interval(float(value), float(value) - reach, float(value) + reach)
    return Difference(interval, pairing, error, freedom)
