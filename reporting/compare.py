"""Comparing two sets of runs, game by game: did a change help?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas
from pandas import DataFrame

from reporting.grid import score_frame
from reporting.published import BENCHMARK_STEP
from reporting.runs import Run
from reporting.statistics import Difference, Interval, difference, mean_difference
from reporting.tables import Table, make_table
from utils import UserError

COLUMNS = "game step first:1 second:1 difference:1 normalised_difference:3 how reading"


def compare_runs(first: Sequence[Run], second: Sequence[Run]) -> Table:
    """Return one row per game, and the mean over the Atari 100k games of both sets if there are several.

    The scores compared are those of step 100,000 of an Atari game if all its runs have them, else of
    the last step that all were evaluated at. Raise UserError if a set holds two runs of one game and
    seed, or no game is in both.
    """
    sets = {"A": first, "B": second}
    for side, runs in sets.items():
        places = [(run.game, run.seed) for run in runs]
        if repeated := [run.name for run in runs if places.count((run.game, run.seed)) > 1]:
            names = " and ".join(repeated)
            raise UserError(f"{side} holds {names}: two runs of one game and seed; select one")
    games = [{run.game for run in runs} for runs in sets.values()]
    if not games[0] & games[1]:
        raise UserError("A and B have no game in common")
    scores = pandas.concat([score_frame(runs).assign(side=side) for side, runs in sets.items()])
    rows = [_row(game, scores[scores.game == game]) for game in sorted(games[0] | games[1])]
    changes = [change for _, change in rows if change]
    table = [row for row, _ in rows]
    if len(changes) > 1:
        mean = mean_difference(changes)
        table.append([f"mean of {len(changes)} games", *[None] * 4, mean, None, _reading(mean)])
    return make_table("compare", COLUMNS, table)


def _row(game: str, scores: DataFrame) -> tuple[list[Any], Difference | None]:
    """The row of one game, and its difference in human-normalised scores if there is one."""
    missing = [f"no evaluated run in {side}" for side in "AB" if side not in set(scores.side)]
    steps = scores.pivot(index="step", columns=["side", "seed"], values="mean").dropna().index
    if missing or steps.empty:
        reason = missing[0] if missing else "no step that all were evaluated at"
        return [game, *[None] * 5, reason, None], None
    is_atari = scores.human_normalised.notna().all()
    step = BENCHMARK_STEP if is_atari and BENCHMARK_STEP in steps else steps.max()
    sides = [scores[(scores.side == side) & (scores.step == step)] for side in "AB"]
    change, normalised = (
        difference(*(dict(zip(rows.seed, rows[column], strict=True)) for rows in sides))
        for column in ("mean", "human_normalised")
    )
    if change.is_paired:  # so that their difference is the one beside them
        sides = [rows[rows.seed.isin(other.seed)] for rows, other in zip(sides, sides[::-1], strict=True)]
    how = [change.pairing, *(line for rows in sides for line in _unusual(rows))]
    means = [rows["mean"].mean() for rows in sides]
    changes = [change.interval, normalised.interval if is_atari else Interval(None)]
    row = [game, step, *means, *changes, "; ".join(how), _reading(change.interval)]
    return row, normalised if is_atari else None


def _unusual(rows: DataFrame) -> list[str]:
    """How many scores of a set were not made fairly, sampled and with the run's own settings."""
    counts = rows.how[rows.how != ""].value_counts()
    return [f"{rows.side.iloc[0]}: {count} of {len(rows)} evaluated {how}" for how, count in counts.items()]


def _reading(interval: Interval) -> str:
    if interval.low is None:
        return "too few seeds to say"
    if interval.low > 0:
        return "B is better"
    return "A is better" if interval.high < 0 else "no difference shown"
