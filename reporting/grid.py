"""Arranging runs into a grid of methods, games and seeds, and saying what is missing from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pandas import DataFrame

from evaluation.tables import Evaluation
from reporting.published import BENCHMARK_STEP, Published, normalised
from reporting.runs import Run
from reporting.statistics import Grid

NUMBERS = ("mean", "std_over_episodes", "human_normalised")
COLUMNS = ("run", "game", "method", "seed", "step", *NUMBERS, "episodes", "how", "counts")


@dataclass(frozen=True)
class Comparison:
    """Methods on one set of games, all of which each of them has played to step 100,000."""

    games: tuple[str, ...]
    suffix: str  # of the names of its files; "" if it has all games of the benchmark
    ours: dict[str, Grid]  # label -> game -> human-normalised scores (seeds,)
    partial: dict[str, int]  # label -> number of games, of methods that lack some; only if it is complete
    published: dict[str, Grid]  # like ours, of methods with per-run scores
    means_only: dict[str, np.ndarray]  # name -> human-normalised means (games,) of the others

    @property
    def scope(self) -> str:
        """How many games, in words."""
        return f"{len(self.games)} of 26 games" if self.suffix else "all 26 games"


def without_duplicates(runs: Iterable[Run]) -> tuple[list[Run], list[str]]:
    """Return `runs` with one run per method, game and seed, in this order, and which were left out.

    Of several that with a score of the benchmark counts, then that with the evaluation of most worth, then
    the one that came furthest, then the first.
    """
    kept: dict[tuple[str, str, int], Run] = {}
    remarks = []
    for run in sorted(runs, key=_weight, reverse=True):  # stable
        first = kept.setdefault((run.label, run.game, run.seed), run)
        if first is not run:
            remarks.append(f"{run.name} ({run.folder}): same method, game and seed as {first.folder}")
    return [kept[key] for key in sorted(kept)], remarks


def _weight(run: Run) -> tuple[Any, ...]:
    return run.benchmarked, run.scored.worth if run.scored else (), run.last_step


def by_label(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return label -> its runs."""
    labels = dict.fromkeys(run.label for run in runs)
    return {label: [run for run in runs if run.label == label] for label in labels}


def score_frame(runs: Iterable[Run]) -> DataFrame:
    """Return one row per run and evaluated checkpoint; `counts` marks the score of a run."""
    rows = [_score_row(run, each) for run in runs for each in run.evaluations]
    return DataFrame(rows, columns=list(COLUMNS)).astype(dict.fromkeys(NUMBERS, float))


def _score_row(run: Run, each: Evaluation) -> tuple[Any, ...]:
    place, counts = (run.name, run.game, run.label, run.seed, each.step), each is run.scored
    score = (each.mean, each.std, run.normalised(each.mean), each.episodes)
    return (*place, *score, each.how, "yes" if counts else "")


def comparisons(scores: DataFrame, published: Published) -> list[Comparison]:
    """Return one comparison per set of games that some method was scored on; that of all 26 comes first."""
    counted = scores[(scores.step == BENCHMARK_STEP) & scores.human_normalised.notna()]
    grids = {
        label: {game: values.to_numpy() for game, values in frame.groupby("game").human_normalised}
        for label, frame in counted.groupby("method")
    }
    game_sets = {tuple(grid) for grid in grids.values()} | {published.games}
    ordered = sorted(game_sets, key=lambda games: (-len(games), games))
    suffixes = ["", *(f"_partial_{number}" for number in range(1, len(ordered)))]
    return [_comparison(*each, grids, published) for each in zip(ordered, suffixes, strict=True)]


def _comparison(
    games: tuple[str, ...], suffix: str, grids: dict[str, Grid], published: Published
) -> Comparison:
    ours = {label: grid for label, grid in grids.items() if tuple(grid) == games}
    partial = {label: len(grid) for label, grid in grids.items() if label not in ours and not suffix}
    with_runs, means_only = {}, {}
    for name, method in published.methods.items():
        known = method.get("seeds") or method["mean"]
        if set(games) <= set(known):
            scores = {game: normalised(game, known[game]) for game in games}
            if method.get("seeds"):
                with_runs[name] = scores
            else:
                means_only[name] = np.asarray(list(scores.values()))
    return Comparison(games, suffix, ours, partial, with_runs, means_only)


def named(label: str, runs: Sequence[Run], reason: str) -> list[str]:
    """Return one line that names `runs`, [] if there are none."""
    return [f"{label}: {reason}: {', '.join(run.name for run in runs)}"] if runs else []


def seed_grids(runs: Sequence[Run], scores: DataFrame) -> tuple[dict[str, DataFrame], list[str]]:
    """Return each method's returns (steps, seeds) at the steps that all its runs were evaluated at.

    Also which runs are in no grid, and why.

    Args:
        runs: of one game. scores: of these runs.
    """
    grids, missing = {}, []
    for label, group in by_label(runs).items():
        own = scores[scores.run.isin([run.name for run in group])]
        missing += named(label, [run for run in group if run.name not in set(own.run)], "no score to draw")
        grid = own.pivot(index="step", columns="seed", values="mean").dropna()
        if len(grid):
            grids[label] = grid
        elif len(own):
            missing.append(
                f"{label}: no step that all its runs were evaluated at: {', '.join(own.run.unique())}"
            )
    return grids, missing


def absent_from(comparison: Comparison, runs: Sequence[Run]) -> list[str]:
    """Return which runs are in no figure of a comparison, and why."""
    lines = []
    for label, group in by_label(runs).items():
        without = [run for run in group if not run.benchmarked]
        lines += named(label, without, "no score at step 100,000 of an Atari 100k game")
        if label not in comparison.ours:
            others = [run for run in group if run not in without]
            lines += named(label, others, "scores on another set of games")
    return lines


def remarks(runs: Sequence[Run], published: Published) -> list[str]:
    """Return what must be known before comparing: unfinished, unevaluated, unlike, unusually scored runs."""
    lines = []
    for label, group in by_label(runs).items():
        lines += _unlike_settings(label, group)
        lines += named(label, [run for run in group if not run.evaluations], "not evaluated yet")
        lines += _unusual_scores(label, group)
        missing = sorted(set(published.games) - {run.game for run in group if run.benchmarked})
        if 0 < len(missing) < len(published.games):
            lines.append(f"{label}: partial grid, no score at step 100,000 on {', '.join(missing)}")
    return lines


def _unusual_scores(label: str, group: Sequence[Run]) -> list[str]:
    """Remarks on scores made otherwise than fairly, sampled and with the run's own settings."""
    ways = sorted({each.how for run in group for each in run.evaluations if each.how})
    made = {how: [run for run in group if how in {each.how for each in run.evaluations}] for how in ways}
    return [line for how, runs in made.items() for line in named(label, runs, f"evaluated {how}")]


def _unlike_settings(label: str, group: Sequence[Run]) -> list[str]:
    """Remarks on settings that not all runs of one method share, or that differ from the papers'."""
    settings = [set(run.deviations) for run in group if run.config]
    shared = set.intersection(*settings) if settings else set()
    unlike = set().union(*settings) - shared
    if unlike:
        names = ", ".join(sorted(unlike))
        return [f"{label}: its runs do not share all settings: {names} in some of them only"]
    return [f"{label}: settings other than the papers': {', '.join(sorted(shared))}"] if shared else []
