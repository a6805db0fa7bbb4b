"""Comparing two sets of runs, game by game: did a change help?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from reporting.grid import is_benchmark_game
from reporting.markup import Column, Table, Value
from reporting.published import Published
from reporting.runs import Run
from reporting.statistics import Difference, Interval, difference, mean_difference
from utils import UserError

COLUMNS = (
    Column("Game", "game"),
    Column("Step", "step"),
    Column("A: mean return", "first", 1),
    Column("B: mean return", "second", 1),
    Column("B − A", "difference", 1, interval=True),
    Column("B − A, human-normalised", "normalised_difference", 3, interval=True),
    Column("How", "how"),
    Column("Reading", "reading"),
)


def compare_runs(first: Sequence[Run], second: Sequence[Run], published: Published) -> Table:
    """One row per game, and the mean over the benchmark games of both sets if there are several.

    The scores compared are those of step 100,000 if all runs of a game have them, else of the last
    step that all were evaluated at. Raises UserError if a set holds two runs of one game and seed,
    or no game is in both.
    """
    sets = {"A": first, "B": second}
    for name, runs in sets.items():
        _check_one_method(name, runs)
    games = {name: {run.game for run in runs} for name, runs in sets.items()}
    if not games["A"] & games["B"]:
        raise UserError("A and B have no game in common")
    rows: list[list[Value]] = []
    normalised = []
    for game in sorted(games["A"] | games["B"]):
        row, change = _row(game, sets, published)
        rows.append(row)
        normalised += [change] if change else []
    if len(normalised) > 1:
        rows.append(_mean_row(normalised))
    return Table("compare", COLUMNS, rows)


def _check_one_method(name: str, runs: Sequence[Run]) -> None:
    seen: dict[tuple[str, int], Run] = {}
    for run in runs:
        other = seen.setdefault((run.game, run.seed), run)
        if other is not run:
            raise UserError(
                f"{name} holds {other.name} and {run.name}: two runs of one game and seed; select one"
            )


def _common_step(runs: Sequence[Run]) -> int | None:
    if all(run.benchmarked for run in runs):
        return runs[0].scored.step if runs[0].scored else None
    return max(set.intersection(*({each.step for each in run.evaluations} for run in runs)), default=None)


def _row(
    game: str, sets: Mapping[str, Sequence[Run]], published: Published
) -> tuple[list[Value], Difference | None]:
    """The row of one game, and its difference in human-normalised scores if there is one."""
    groups = {
        name: [run for run in runs if run.game == game and run.evaluations] for name, runs in sets.items()
    }
    absent = [name for name, runs in groups.items() if not runs]
    if absent:
        return [game, *[None] * 5, f"no evaluated run in {absent[0]}", ""], None
    everyone = [run for runs in groups.values() for run in runs]
    step = _common_step(everyone)
    if step is None:
        return [game, *[None] * 5, "no step that all were evaluated at", ""], None
    scores = [_scores_at(step, runs) for runs in groups.values()]
    change, normalised = difference(*scores), None
    if all(is_benchmark_game(run, published) for run in everyone):
        scaled = [{seed: float(published.normalise(game, each[seed])) for seed in each} for each in scores]
        normalised = difference(*scaled)
    means = [sum(each.values()) / len(each) for each in scores]
    row = [game, step, *means, change.interval, normalised.interval if normalised else None]
    how = "; ".join([change.pairing, *_unusual(step, groups)])
    return [*row, how, _reading(change.interval)], normalised


def _scores_at(step: int, runs: Sequence[Run]) -> dict[int, float]:
    return {run.seed: each.mean for run in runs for each in run.evaluations if each.step == step}


def _unusual(step: int, groups: Mapping[str, Sequence[Run]]) -> list[str]:
    """How many scores of which set were made greedily or by the release's protocol."""
    lines = []
    for name, runs in groups.items():
        counts = Counter(each.how for run in runs for each in run.evaluations if each.step == step)
        lines += [f"{name}: {counts[how]} of {len(runs)} evaluated {how}" for how in sorted(counts) if how]
    return lines


def _mean_row(differences: Sequence[Difference]) -> list[Value]:
    interval = mean_difference(differences)
    return [f"mean of {len(differences)} games", *[None] * 4, interval, "", _reading(interval)]


def _reading(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return "too few seeds to say"
    if interval.low > 0:
        return "B is better"
    return "A is better" if interval.high < 0 else "no difference shown"
