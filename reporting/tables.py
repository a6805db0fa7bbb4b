"""The tables of a report: pandas frames and how they are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from pandas import DataFrame, Series

from evaluation.scores import reference_scores
from reporting.grid import Comparison
from reporting.published import BENCHMARK_STEP, REFERENCE, Published
from reporting.runs import SECONDS_PER_HOUR, Run
from reporting.statistics import HUMAN, Grid, Interval, aggregate
from utils import write_atomically

OURS = "here"  # origin of a row that is not from the literature
MISSING = "–"
TITLES = {
    "iqm": "IQM",
    "published_storm": f"Published {REFERENCE}: mean [lowest, highest]",
    "published": f"{REFERENCE}, published",
    "first": "A: mean return",
    "second": "B: mean return",
    "difference": "B − A",
}  # of the columns whose title is not simply their name


@dataclass(frozen=True)
class Table:
    """A frame, whose columns x_low and x_high are the bounds of its column x, and how it is shown."""

    name: str  # file name without ending
    frame: DataFrame
    digits: Mapping[str, int]  # columns to show -> digits behind the point

    @property
    def _keys(self) -> list[str]:
        """The columns to show that have any value."""
        return [key for key in self.digits if self.frame.empty or not self.frame[key].isna().all()]

    @property
    def numeric(self) -> list[bool]:
        """Which of the columns shown hold numbers."""
        return [pandas.api.types.is_numeric_dtype(self.frame[key]) for key in self._keys]

    @property
    def shown(self) -> DataFrame:
        """The texts a reader sees, under titles."""
        columns = {}
        for key in self._keys:
            parts = [self.frame[name] for name in (key, f"{key}_low", f"{key}_high") if name in self.frame]
            texts = [_show_all(values, self.digits[key]) for values in zip(*parts, strict=True)]
            columns[TITLES.get(key, key.replace("_", " ").capitalize())] = texts
        return DataFrame(columns)

    @property
    def ours(self) -> list[bool]:
        """Which rows to highlight: those of ours among published ones."""
        return list(self.frame.origin == OURS) if "origin" in self.frame else [False] * len(self.frame)

    @property
    def markdown(self) -> str:
        """The table as GitHub's Markdown."""
        rules = ["---:" if is_number else "---" for is_number in self.numeric]
        lines = [self.shown.columns, rules, *self.shown.to_numpy()]
        return "".join(f"| {' | '.join(text.replace('|', '·') for text in line)} |\n" for line in lines)


def show(value: Any, digits: int) -> str:
    """Return a value as a reader wants it: 1,234.5, or – if it is missing."""
    if isinstance(value, str):
        return value
    return MISSING if pandas.isna(value) else f"{value:,.{digits}f}"


def _show_all(values: Sequence[Any], digits: int) -> str:
    """A value and, if they are known, its bounds: 0.561 [0.510, 0.616]."""
    texts = [show(value, digits) for value in values]
    return texts[0] if MISSING in texts[1:] or not texts[1:] else f"{texts[0]} [{texts[1]}, {texts[2]}]"


def write_csv(folder: Path, name: str, frame: DataFrame) -> None:
    """Write a frame as `folder`/`name`.csv."""
    write_atomically(folder / f"{name}.csv", frame.to_csv(index=False, lineterminator="\n"))


def make_table(name: str, columns: str, rows: Sequence[Sequence[Any]]) -> Table:
    """Return a table of `columns` "key key:digits …"; an Interval takes three columns of its frame."""
    digits = {key: int(number or 0) for key, _, number in (each.partition(":") for each in columns.split())}
    frame = DataFrame(rows, columns=list(digits))
    for key in digits:
        if frame[key].map(lambda value: isinstance(value, Interval)).any():
            place = frame.columns.get_loc(key)
            frame.insert(place + 1, f"{key}_low", frame[key].str[1])
            frame.insert(place + 2, f"{key}_high", frame[key].str[2])
            frame[key] = frame[key].str[0]
    return Table(name, frame.convert_dtypes(), digits)


def span(counts: Series) -> int | str | None:
    """Return the one number that all `counts` are, else "3 to 5"; None if none is known."""
    known = sorted({int(count) for count in counts.dropna()})
    return f"{known[0]} to {known[-1]}" if len(known) > 1 else next(iter(known), None)


def game_table(scores: DataFrame, published: Published) -> Table:
    """Return one row per game, method and step of the score, beside published STORM."""
    random, human = reference_scores()
    rows = []
    for (game, method, step), runs in scores[scores.counts == "yes"].groupby(["game", "method", "step"]):
        seeds, returns = ", ".join(map(str, runs.seed)), runs["mean"]
        row = [game, method, step, returns.mean(), returns.std(), len(runs), seeds, span(runs.episodes)]
        levels, reference, note = [None] * 3, None, None
        if runs.human_normalised.notna().all():
            levels = [runs.human_normalised.mean(), random[game], human[game]]
            if step == BENCHMARK_STEP:
                reference, note = published.seed_range(game), published.note(game) or None
        rows.append([*row, *levels, Interval(*reference or (None,)), note])
    columns = "game method step mean_return:1 std_over_seeds:1 seeds seed_numbers episodes human_normalised:3"
    return make_table("per_game", f"{columns} random_player:1 person:1 published_storm:1 note", rows)


def aggregate_table(comparison: Comparison) -> Table:
    """Return mean, median, IQM and optimality gap of every method of a comparison, ours first."""
    nothing = Interval(None)
    rows = [_grid_row(label, OURS, grid) for label, grid in comparison.ours.items()]
    for label, count in comparison.partial.items():
        rows.append([label, OURS, count, "partial: not averaged", *[nothing] * 4, None])
    rows += [_grid_row(name, "published", grid) for name, grid in comparison.published.items()]
    for name, means in comparison.means_only.items():
        averages = [Interval(means.mean()), Interval(np.median(means)), nothing, nothing]
        rows.append([name, "published", len(means), "means only", *averages, sum(means > HUMAN)])
    columns = "method origin games seeds_per_game mean:3 median:3 iqm:3 optimality_gap:3 games_above_human"
    return make_table(f"aggregates{comparison.suffix}", columns, rows)


def _grid_row(name: str, origin: str, grid: Grid) -> list[Any]:
    seeds = span(Series([len(scores) for scores in grid.values()]))
    superhuman = sum(scores.mean() > HUMAN for scores in grid.values())
    return [name, origin, len(grid), seeds, *aggregate(grid).values(), superhuman]


def speed_table(runs: Sequence[Run]) -> Table:
    """Return how long each run took, and on what."""
    rows = []
    for run in runs:
        steps = run.info.get("finished_step") or run.history.last_step or None
        seconds = run.info.get("elapsed_s") or run.history.seconds
        times = [seconds / SECONDS_PER_HOUR, steps and steps / seconds] if seconds else [None, None]
        facts = [str(run.info.get(key) or MISSING) for key in ("status", "hardware")]
        rows.append([run.game, run.label, run.seed, steps, *times, *facts, run.short_commit or MISSING])
    columns = "game method seed steps hours:2 steps_per_second:1 state hardware commit"
    return make_table("wall_clock", columns, rows)
