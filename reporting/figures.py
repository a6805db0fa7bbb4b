"""The figures of a report, each written as SVG (for the page) and PNG (for slides)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reporting.curves import Curve, learning_curve
from reporting.grid import by_label, is_benchmark_game
from reporting.markup import OURS, Table
from reporting.published import BENCHMARK_STEP, REFERENCE, Published
from reporting.runs import Run
from reporting.statistics import Interval

# Colours that most kinds of colour blindness keep apart (Okabe and Ito 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
REFERENCE_COLOUR, OTHER_COLOUR, GRID_COLOUR, BAND_OPACITY = "#222222", "#9AA3AD", "#E3E7EB", 0.18
TRAINING_BINS = 40  # points of a curve of training returns
DOTS_PER_INCH = 160
STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#7A838C",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID_COLOUR,
    "legend.frameon": False,
    "svg.hashsalt": "report",
}


def save(figure: Figure, folder: Path, name: str) -> Path:
    """Write a figure as `folder`/`name`.svg and .png; the path of the SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", dpi=DOTS_PER_INCH)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    return folder / f"{name}.svg"


def new_figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure of `columns` panels, sized in inches, in the style of the report."""
    matplotlib.rcParams.update(STYLE)
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(1, columns)))


def colours(labels: Iterable[str]) -> dict[str, str]:
    """label -> colour, for each method of ours."""
    return dict(zip(sorted(set(labels)), itertools.cycle(COLOURS), strict=False))


def draw_aggregates(table: Table, palette: dict[str, str]) -> Figure:
    """Point and interval of every method, one panel per aggregate; methods without intervals are left out."""
    names = [column.key for column in table.columns]
    kept = [row for row in table.rows if isinstance(row[names.index("iqm")], Interval)][::-1]
    panels = [index for index, column in enumerate(table.columns) if column.interval]
    figure, axes = new_figure(12, 1.2 + 0.27 * len(kept), len(panels))
    for axis, index in zip(axes, panels, strict=True):
        for height, row in enumerate(kept):
            ours = row[names.index("origin")] == OURS
            _draw_interval(
                axis, height, row[index], palette.get(row[0], COLOURS[0]) if ours else OTHER_COLOUR
            )
        axis.set_title(table.columns[index].title, fontsize=11)
        axis.set_yticks(range(len(kept)), [])
        axis.margins(y=0.04)
    axes[0].set_yticklabels([f"{row[0]} (here)" if row[1] == OURS else row[0] for row in kept])
    figure.supxlabel("human-normalised score (optimality gap: lower is better)", fontsize=10)
    return figure


def _draw_interval(axis: Axes, height: float, interval: Interval, colour: str) -> None:
    if interval.low is not None:
        axis.barh(
            height, interval.high - interval.low, left=interval.low, height=0.6, color=colour, alpha=0.35
        )
    axis.plot([interval.value] * 2, [height - 0.3, height + 0.3], color=colour, linewidth=2.2)


def draw_improvement(table: Table, palette: dict[str, str]) -> Figure:
    """Probability that a run of ours is the better one, against each other method."""
    rows = table.rows[::-1]
    figure, (axis,) = new_figure(7, 1.1 + 0.27 * len(rows))
    for height, row in enumerate(rows):
        _draw_interval(axis, height, row[-1], palette.get(row[0], COLOURS[0]))
    axis.axvline(0.5, color=REFERENCE_COLOUR, linewidth=1, linestyle=":")
    axis.set_xlim(0, 1)
    axis.set_yticks(range(len(rows)), [f"{row[0]} (here) beats {_origin(row)}" for row in rows])
    axis.set_xlabel("probability of improvement")
    return figure


def _origin(row: Sequence[object]) -> str:
    return f"{row[1]} (here)" if row[2] == OURS else f"published {row[1]}"


def draw_profiles(curves: dict[tuple[str, bool], Curve], palette: dict[str, str]) -> Figure:
    """Share of runs that reach more than a score, for every score."""
    figure, (axis,) = new_figure(7, 4.2)
    styles = itertools.cycle(("-", "--", "-.", ":"))
    for (name, ours), curve in curves.items():
        text = f"{name} (here)" if ours else f"{name}, published"
        colour = palette[name] if ours else REFERENCE_COLOUR if name == REFERENCE else OTHER_COLOUR
        _draw_curve(axis, curve, colour, text, "-" if ours else next(styles))
    axis.axvline(1, color=REFERENCE_COLOUR, linewidth=0.8, linestyle=":")
    axis.set(
        xlabel="human-normalised score τ (1: a person)", ylabel="share of runs with score > τ", ylim=(0, 1)
    )
    axis.legend(fontsize=9)
    return figure


def _draw_curve(axis: Axes, curve: Curve, colour: str, label: str, style: str = "-") -> None:
    x, mean, bounds = curve
    mark = "o" if len(x) <= TRAINING_BINS and style == "-" else None
    axis.plot(x, mean, style, color=colour, label=label, linewidth=1.8, marker=mark, markersize=3)
    if bounds is not None and len(x) > 1:
        axis.fill_between(x, *bounds, color=colour, alpha=BAND_OPACITY, linewidth=0)
    elif bounds is not None:
        axis.vlines(x, *bounds, color=colour, alpha=0.6)


def draw_game(game: str, runs: Sequence[Run], published: Published, palette: dict[str, str]) -> Figure:
    """Learning curves of one game: evaluations with intervals, training returns, STORM's published range."""
    figure, (axis,) = new_figure(5, 3.4)
    for label, group in by_label(runs).items():
        curve = learning_curve(group)
        if curve is not None:
            _draw_curve(axis, curve, palette[label], f"{label}, {len(group)} seed{'s' * (len(group) > 1)}")
        for run in group:
            _draw_training_returns(axis, run, palette[label])
    if any(run.benchmarked and is_benchmark_game(run, published) for run in runs):
        _draw_reference(axis, published.seed_range(REFERENCE, game))
    axis.set_title(game, loc="left", fontsize=11, fontweight="bold")
    axis.set(xlabel="environment steps", ylabel="episode return")
    axis.set_xlim(left=0)
    axis.xaxis.set_major_formatter(_thousands)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8)
    return figure


def _draw_reference(axis: Axes, scores: tuple[float, float, float] | None) -> None:
    if scores is not None:
        mean, lowest, highest = scores
        look = {"fmt": "D", "color": REFERENCE_COLOUR, "markersize": 4, "capsize": 4}
        reach = [[mean - lowest], [highest - mean]]
        axis.errorbar([BENCHMARK_STEP], [mean], reach, label=f"{REFERENCE}, published range", **look)


def _thousands(value: float, _position: int | None = None) -> str:
    return f"{value / 1000:g}k" if value else "0"


def _draw_training_returns(axis: Axes, run: Run, colour: str) -> None:
    history = run.history
    if not len(history.returns):
        return
    edges = np.linspace(0, max(history.return_steps[-1], 1), TRAINING_BINS + 1)
    places = np.clip(np.digitize(history.return_steps, edges) - 1, 0, TRAINING_BINS - 1)
    filled = np.unique(places)
    means = [history.returns[places == place].mean() for place in filled]
    middles = (edges[:-1] + edges[1:])[filled] / 2
    axis.plot(middles, means, color=colour, linewidth=0.8, alpha=0.45)


def draw_efficiency(curves: dict[str, Curve], clocks: dict[str, Curve], palette: dict[str, str]) -> Figure:
    """IQM against environment steps and against hours of training."""
    figure, axes = new_figure(10, 3.8, 2)
    for axis, drawn in zip(axes, (curves, clocks), strict=True):
        for label, curve in drawn.items():
            _draw_curve(axis, curve, palette[label], label)
        axis.set_ylabel("IQM of human-normalised scores")
        axis.set_xlim(left=0)
    axes[0].set_xlabel("environment steps")
    axes[0].xaxis.set_major_formatter(_thousands)
    axes[1].set_xlabel("hours of training")
    axes[0].legend(fontsize=9)
    return figure
