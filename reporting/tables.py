"""What the tables of a report hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from evaluation.tables import Evaluation
from reporting.curves import Curve
from reporting.files import SECONDS_PER_HOUR
from reporting.grid import Cell, Comparison, by_label, cells, is_benchmark_game
from reporting.markup import MISSING, OURS, Column, Table, Value
from reporting.published import REFERENCE, Published
from reporting.runs import Run
from reporting.statistics import (
    AGGREGATES,
    Interval,
    aggregate,
    aggregate_means,
    game_means,
    probability_of_improvement,
    superhuman,
)


def run_table(runs: Sequence[Run], published: Published) -> Table:
    """One row per run and evaluated checkpoint; the score that counts is marked."""
    columns = (
        Column("Game", "game"),
        Column("Method", "method"),
        Column("Seed", "seed"),
        Column("Step", "step"),
        Column("Mean return", "mean", 1),
        Column("Std over episodes", "std_over_episodes", 1),
        Column("Episodes", "episodes"),
        Column("Human-normalised", "human_normalised", 3),
        Column("Counts", "counts"),
        Column("Evaluated", "how"),
    )
    rows = [
        _run_row(run, each, published)
        for group in by_label(runs).values()
        for run in group
        for each in run.evaluations
    ]
    return Table("evaluations", columns, rows)


def _run_row(run: Run, evaluation: Evaluation, published: Published) -> list[Value]:
    score = evaluation.mean, evaluation.std, evaluation.episodes, _normalised(run, evaluation.mean, published)
    counts = "yes" if evaluation is run.scored else ""
    return [run.game, run.label, run.seed, evaluation.step, *score, counts, evaluation.how]


def _normalised(run: Run, score: float, published: Published) -> float | None:
    return float(published.normalise(run.game, score)) if is_benchmark_game(run, published) else None


def game_table(runs: Sequence[Run], published: Published) -> Table:
    """One row per game, method and step of the score: mean and spread over seeds, beside published STORM."""
    columns = (
        Column("Game", "game"),
        Column("Method", "method"),
        Column("Step", "step"),
        Column("Mean return", "mean", 1),
        Column("Std over seeds", "std_over_seeds", 1),
        Column("Seeds", "seeds"),
        Column("Seed numbers", "seed_numbers"),
        Column("Human-normalised", "human_normalised", 3),
        Column("Random player", "random", 1),
        Column("Person", "human", 1),
        Column(f"Published {REFERENCE}: mean [lowest, highest]", "published_storm", 1, interval=True),
    )
    return Table("per_game", columns, [_game_row(cell, published) for cell in cells(runs)])


def _game_row(cell: Cell, published: Published) -> list[Value]:
    scores = np.asarray(list(cell.scores.values()))
    mean, spread = float(scores.mean()), float(scores.std(ddof=1)) if len(scores) > 1 else None
    seeds = ", ".join(map(str, cell.scores))
    row: list[Value] = [cell.game, cell.label, cell.step, mean, spread, len(scores), seeds]
    if not is_benchmark_game(cell.runs[0], published):
        return [*row, None, None, None, None]
    levels = published.random[cell.game], published.human[cell.game]
    reference = published.seed_range(REFERENCE, cell.game) if cell.runs[0].benchmarked else None
    return [*row, _normalised(cell.runs[0], mean, published), *levels, reference and Interval(*reference)]


def aggregate_table(comparison: Comparison, partial: dict[str, int], suffix: str) -> Table:
    """Mean, median, IQM and optimality gap of every method of a comparison, ours first.

    `partial` (label -> games it has) are methods of ours that lack games of this comparison: they
    are listed without any average.
    """
    columns = (
        Column("Method", "method"),
        Column("From", "origin"),
        Column("Games", "games"),
        Column("Seeds a game", "seeds"),
        Column("Mean", "mean", 3, interval=True),
        Column("Median", "median", 3, interval=True),
        Column("IQM", "iqm", 3, interval=True),
        Column("Optimality gap", "optimality_gap", 3, interval=True),
        Column("Games above human", "superhuman"),
    )
    rows = [_grid_row(label, OURS, grid) for label, grid in comparison.ours.items()]
    for label, count in partial.items():
        rows.append([label, OURS, count, "partial: not averaged", *[None] * 5])
    rows += [_grid_row(name, "published", grid) for name, grid in comparison.published.items()]
    for name, means in comparison.means_only.items():
        values = aggregate_means(means)
        averages = [values["mean"], values["median"], None, None, superhuman(means)]
        rows.append([name, "published", len(means), "means only", *averages])
    return Table(f"aggregates{suffix}", columns, rows)


def _grid_row(name: str, origin: str, grid: dict[str, np.ndarray]) -> list[Value]:
    values = aggregate(grid)
    counts = sorted({len(scores) for scores in grid.values()})
    seeds = counts[0] if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    averages = [values[each] for each in AGGREGATES]
    return [name, origin, len(grid), seeds, *averages, superhuman(game_means(grid))]


def improvement_table(comparison: Comparison, suffix: str) -> Table:
    """Probability that a run of ours beats a run of each other method with per-run scores."""
    columns = (
        Column("Method", "method"),
        Column("against", "other"),
        Column("From", "origin"),
        Column("Games", "games"),
        Column("Probability of improvement", "probability", 3, interval=True),
    )
    rows: list[list[Value]] = []
    for label, grid in comparison.ours.items():
        others = [(name, OURS, other) for name, other in comparison.ours.items() if name != label]
        others += [(name, "published", other) for name, other in comparison.published.items()]
        for name, origin, other in others:
            chance = probability_of_improvement(grid, other)
            rows.append([label, name, origin, len(comparison.games), chance])
    return Table(f"probability_of_improvement{suffix}", columns, rows)


def speed_table(runs: Sequence[Run]) -> Table:
    """How long each run took, and on what."""
    columns = (
        Column("Game", "game"),
        Column("Method", "method"),
        Column("Seed", "seed"),
        Column("State", "state"),
        Column("Steps", "steps"),
        Column("Hours", "hours", 2),
        Column("Steps a second", "steps_per_second", 1),
        Column("Hardware", "hardware"),
        Column("Commit", "commit"),
    )
    rows = [_speed_row(run) for group in by_label(runs).values() for run in group]
    return Table("wall_clock", columns, rows)


def _speed_row(run: Run) -> list[Value]:
    steps = run.info.get("finished_step") or run.history.last_step or None
    seconds = run.info.get("elapsed_s") or (
        run.history.clock_seconds[-1] if len(run.history.clock_seconds) else None
    )
    hours = float(seconds) / SECONDS_PER_HOUR if seconds else None
    speed = float(steps) / float(seconds) if steps and seconds else None
    facts = [str(run.info.get(key) or MISSING) for key in ("status", "hardware", "commit")]
    return [run.game, run.label, run.seed, facts[0], steps, hours, speed, facts[1], facts[2][:12]]


def printed_table(published: Published) -> Table:
    """Aggregates as papers print them, methods without a per-game table included."""
    columns = (
        Column("Method", "method"),
        Column("Mean", "mean", 3),
        Column("Median", "median", 3),
        Column("IQM", "iqm", 3),
        Column("Source", "source"),
    )
    rows = [
        [name, *(entry.get(key) for key in ("mean", "median", "iqm")), entry["source"]]
        for name, entry in published.printed.items()
    ]
    return Table("published_as_printed", columns, rows)


def source_table(published: Published) -> Table:
    """Where the published scores come from."""
    columns = (Column("Method", "method"), Column("Source", "source"), Column("Note", "note"))
    rows: list[list[Value]] = [[each.name, each.source, each.note] for each in published.methods.values()]
    for name, entry in published.fragments.items():
        scores = ", ".join(f"{game} {score:,.0f}" for game, score in entry["mean"].items())
        rows.append([name, entry["source"], f"only {scores}: {entry['note']}"])
    return Table("published_sources", columns, rows)


def curve_table(name: str, axis: str, lines: Mapping[str, Curve]) -> Table:
    """The points of curves, title -> curve, over `axis`."""
    columns = (Column("Curve", "curve"), Column(axis, axis, 2), Column("Value", "value", 3, interval=True))
    rows: list[list[Value]] = []
    for title, (places, values, bounds) in lines.items():
        for index, place in enumerate(places):
            limits = [float(bound[index]) for bound in bounds] if bounds is not None else []
            rows.append([title, float(place), Interval(float(values[index]), *limits)])
    return Table(name, columns, rows)
