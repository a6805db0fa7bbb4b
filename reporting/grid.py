"""Arranging runs into a grid of methods, games and seeds, and saying what is missing from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from reporting.published import Published
from reporting.runs import Run


@dataclass(frozen=True)
class Cell:
    """One method on one game at one step; runs scored at different steps are never averaged."""

    game: str
    label: str
    step: int
    runs: tuple[Run, ...]

    @property
    def scores(self) -> dict[int, float]:
        """seed -> mean episode return."""
        return {run.seed: run.scored.mean for run in self.runs if run.scored}


@dataclass(frozen=True)
class Comparison:
    """Methods on one set of games, all of which each of them has played to step 100,000."""

    games: tuple[str, ...]
    complete: bool  # whether these are all games of the benchmark
    ours: dict[str, dict[str, np.ndarray]]  # label -> game -> human-normalised scores (seeds,)
    published: dict[str, dict[str, np.ndarray]]  # the same of methods with per-run scores
    means_only: dict[str, dict[str, float]]  # name -> game -> human-normalised mean of the others

    @property
    def scope(self) -> str:
        """How many games, in words."""
        return "all 26 games" if self.complete else f"{len(self.games)} of 26 games"


def without_duplicates(runs: Iterable[Run]) -> tuple[list[Run], list[str]]:
    """`runs` with one run per method, game and seed, and a remark on each that was left out."""
    kept: dict[tuple[str, str, int], Run] = {}
    remarks = []
    for run in runs:
        first = kept.setdefault((run.label, run.game, run.seed), run)
        if first is not run:
            remarks.append(f"{run.name} ({run.folder}): same method, game and seed as {first.folder}")
    return list(kept.values()), remarks


def by_label(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """label -> its runs, labels in alphabetical order."""
    groups: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.label, run.game, run.seed)):
        groups.setdefault(run.label, []).append(run)
    return groups


def cells(runs: Iterable[Run]) -> list[Cell]:
    """The evaluated runs by game, method and step of their score."""
    groups: dict[tuple[str, str, int], list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        if run.scored:
            groups.setdefault((run.game, run.label, run.scored.step), []).append(run)
    return [Cell(*place, tuple(group)) for place, group in sorted(groups.items())]


def benchmark_grid(runs: Iterable[Run], published: Published) -> dict[str, np.ndarray]:
    """game -> human-normalised scores (seeds,) of the runs scored at step 100,000 on a benchmark game."""
    scores: dict[str, list[float]] = {}
    for run in runs:
        if run.scored and run.benchmarked and is_benchmark_game(run, published):
            scores.setdefault(run.game, []).append(float(published.normalise(run.game, run.scored.mean)))
    return {game: np.asarray(scores[game]) for game in sorted(scores)}


def is_benchmark_game(run: Run, published: Published) -> bool:
    """Whether a run played one of the 26 Atari games, not something else of the same name."""
    atari = run.config is None or run.config.BasicSettings.env_name.startswith("ALE/")
    return atari and run.game in published.random


def comparisons(runs: Sequence[Run], published: Published) -> list[Comparison]:
    """One comparison per set of games that some method was scored on; that of all 26 always comes first."""
    grids = {label: benchmark_grid(group, published) for label, group in by_label(runs).items()}
    game_sets = {tuple(grid) for grid in grids.values() if grid} | {published.games}
    return [
        _comparison(games, {label: grid for label, grid in grids.items() if tuple(grid) == games}, published)
        for games in sorted(game_sets, key=lambda games: (-len(games), games))
    ]


def _comparison(
    games: tuple[str, ...], ours: dict[str, dict[str, np.ndarray]], published: Published
) -> Comparison:
    def has_all(known: Iterable[str]) -> bool:
        return set(games) <= set(known)

    with_runs, means_only = {}, {}
    for name, method in published.methods.items():
        if method.seeds and has_all(method.seeds):
            with_runs[name] = {game: published.normalise(game, method.seeds[game]) for game in games}
        elif method.seeds is None and has_all(method.means):
            means_only[name] = {game: float(published.normalise(game, method.means[game])) for game in games}
    return Comparison(games, games == published.games, ours, with_runs, means_only)


def remarks(runs: Sequence[Run], published: Published) -> list[str]:
    """What a reader must know before comparing: unfinished, unevaluated, unlike and unusually scored runs."""
    lines = []
    for label, group in by_label(runs).items():
        lines += _uneven_settings(label, group)
        unevaluated = [run.name for run in group if not run.evaluations]
        if unevaluated:
            lines.append(f"{label}: not evaluated yet: {', '.join(unevaluated)}")
        lines += _unusual_scores(label, group)
        short = [f"{run.name} ({run.scored.step:,})" for run in group if run.scored and not run.benchmarked]
        if short:
            lines.append(f"{label}: no evaluation at step 100,000, so in no average: {', '.join(short)}")
        missing = [game for game in published.games if game not in benchmark_grid(group, published)]
        if 0 < len(missing) < len(published.games):
            lines.append(f"{label}: partial grid, no score at step 100,000 on {', '.join(missing)}")
    return lines


def _unusual_scores(label: str, group: Sequence[Run]) -> list[str]:
    """Remarks on scores made greedily or by the release's protocol."""
    names: dict[str, list[str]] = {}
    for run in group:
        counts = Counter(each.how for each in run.evaluations if each.how)
        for how, count in counts.items():
            some = "" if count == len(run.evaluations) else f" ({count} of {len(run.evaluations)} steps)"
            names.setdefault(how, []).append(f"{run.name}{some}")
    return [f"{label}: evaluated {how}: {', '.join(names[how])}" for how in sorted(names)]


def _uneven_settings(label: str, group: Sequence[Run]) -> list[str]:
    """Remarks on settings that not all runs of one method share, or that differ from the papers'."""
    settings = {tuple(run.deviations) for run in group if run.config}
    if len(settings) > 1:
        shared = set.intersection(*map(set, settings))
        unlike = sorted({text for deviations in settings for text in deviations} - shared)
        return [f"{label}: its runs do not share all settings: {', '.join(unlike)} in some of them only"]
    if settings and (changed := next(iter(settings))):
        return [f"{label}: settings other than the papers': {', '.join(changed)}"]
    return []
