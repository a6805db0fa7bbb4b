"""Comparing two sets of runs, game by game: did a change help?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reporting.runs import Run
from reporting.statistics import Difference, Interval, difference, mean_difference
from reporting.tables import Table, make_table
from utils import UserError

COLUMNS = "game step first:1 second:1 difference:1 normalised_difference:3 how reading"
Sets = Mapping[str, Sequence[Run]]  # "A" and "B"


def compare_runs(first: Sequence[Run], second: Sequence[Run]) -> Table:
    """Return one row per game, and the mean over the Atari 100k games of both sets if there are several.

    The scores compared are those of step 100,000 if all runs of a game have them, else of the last
    step that all were evaluated at. Raise UserError if a set holds two runs of one game and seed,
    or no game is in both.
    """
    sets = {"A": first, "B": second}
    for name, runs in sets.items():
        _check_one_method(name, runs)
    games = [{run.game for run in runs} for runs in sets.values()]
    if not games[0] & games[1]:
        raise UserError("A and B have no game in common")
    rows, changes = [], []
    for game in sorted(games[0] | games[1]):
        played = {name: [run for run in runs if run.game == game] for name, runs in sets.items()}
        row, change = _row(game, played)
        rows.append(row)
        changes += [change] if change else []
    if len(changes) > 1:
        mean = mean_difference(changes)
        rows.append([f"mean of {len(changes)} games", *[None] * 4, mean, None, _reading(mean)])
    return make_table("compare", COLUMNS, rows)


def _check_one_method(name: str, runs: Sequence[Run]) -> None:
    seen: dict[tuple[str, int], Run] = {}
    for run in runs:
        other = seen.setdefault((run.game, run.seed), run)
        if other is not run:
            pair = f"{other.name} and {run.name}"
            raise UserError(f"{name} holds {pair}: two runs of one game and seed; select one")


def _row(game: str, sets: Sets) -> tuple[list[Any], Difference | None]:
    """The row of one game, and its difference in human-normalised scores if there is one."""
    groups = {name: [run for run in runs if run.evaluations] for name, runs in sets.items()}
    absent = [name for name, runs in groups.items() if not runs]
    everyone = [run for runs in groups.values() for run in runs]
    step = None if absent else _common_step(everyone)
    if step is None:
        reason = f"no evaluated run in {absent[0]}" if absent else "no step that all were evaluated at"
        return [game, *[None] * 5, reason, None], None
    scores = [_scores_at(step, runs) for runs in groups.values()]
    change, normalised = difference(*scores), None
    if all(run.is_atari for run in everyone):
        scale = everyone[0].normalised
        normalised = difference(*({seed: scale(score) for seed, score in each.items()} for each in scores))
    means = [float(np.mean(list(each.values()))) for each in scores]
    left_out = [
        f"{name}: {run.name} is not evaluated" for name in sets for run in sets[name] if not run.evaluations
    ]
    how = "; ".join([change.pairing, *_unusual(step, groups), *left_out])
    row = [game, step, *means, change.interval, normalised.interval if normalised else Interval(None)]
    return [*row, how, _reading(change.interval)], normalised


def _common_step(runs: Sequence[Run]) -> int | None:
    if all(run.benchmarked for run in runs):
        return runs[0].scored.step
    return max(set.intersection(*({each.step for each in run.evaluations} for run in runs)), default=None)


def _scores_at(step: int, runs: Sequence[Run]) -> dict[int, float]:
    return {run.seed: each.mean for run in runs for each in run.evaluations if each.step == step}


def _unusual(step: int, groups: Sets) -> list[str]:
    """How many scores of which set were made greedily or by the release's protocol."""
    lines = []
    for name, runs in groups.items():
        counts = Counter(each.how for run in runs for each in run.evaluations if each.step == step)
        lines += [f"{name}: {counts[how]} of {len(runs)} evaluated {how}" for how in sorted(counts) if how]
    return lines


def _reading(interval: Interval) -> str:
    if interval.low is None:
        return "too few seeds to say"
    if interval.low > 0:
        return "B is better"
    return "A is better" if interval.high < 0 else "no difference shown"
