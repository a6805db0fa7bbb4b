"""The figures of a report, each written as SVG (for the page) and PNG (for slides)."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pandas import DataFrame, Series

from reporting.grid import Comparison
from reporting.published import BENCHMARK_STEP, REFERENCE
from reporting.runs import Run
from reporting.statistics import mean_curve, performance_profile

# Colours that most kinds of colour blindness keep apart (Okabe and Ito 2008).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
REFERENCE_COLOUR, OTHER_COLOUR = "#222222", "#9AA3AD"
SIZE = (5, 3.4)  # inches: the text stays readable on a phone
THRESHOLDS = np.linspace(0, 4, 81)  # human-normalised scores of a performance profile
# Published methods whose profiles are drawn.
COMPARED = {REFERENCE: REFERENCE_COLOUR} | dict.fromkeys(("DreamerV3_2023", "IRIS", "DIAMOND"), OTHER_COLOUR)
TRAINING_BINS = 40  # points of a curve of training returns
DOTS_PER_INCH = 160
STYLE = {
    **dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False),
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    **{"axes.edgecolor": "#7A838C", "grid.color": "#E3E7EB", "legend.fontsize": 9, "svg.hashsalt": "report"},
}


def save(figure: Figure, path: Path) -> None:
    """Write a figure as `path`.svg and `path`.png."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(f"{path}.png", dpi=DOTS_PER_INCH)
    figure.savefig(f"{path}.svg", metadata={"Date": None})


def colours(labels: Iterable[str]) -> dict[str, str]:
    """Return label -> colour, for each method of ours."""
    return dict(zip(sorted(set(labels)), itertools.cycle(COLOURS), strict=False))


def _new_figure() -> tuple[Figure, Axes]:
    matplotlib.rcParams.update(STYLE)
    figure = Figure(figsize=SIZE, layout="constrained")
    return figure, figure.subplots()


def draw_profiles(comparison: Comparison, palette: Mapping[str, str]) -> Figure:
    """Share of runs that reach more than a score, for every score."""
    figure, axis = _new_figure()
    for label, grid in comparison.ours.items():
        profile = performance_profile(grid, THRESHOLDS)
        _draw_curve(axis, THRESHOLDS, *profile, palette[label], f"{label} (here)")
    styles = itertools.cycle(("-", "--", "-.", ":"))
    for name, grid in comparison.published.items():
        if name in COMPARED:
            profile, colour = performance_profile(grid, THRESHOLDS), COMPARED[name]
            _draw_curve(axis, THRESHOLDS, *profile, colour, f"{name}, published", next(styles))
    axis.axvline(1, color=REFERENCE_COLOUR, linewidth=0.8, linestyle=":")
    axis.set(xlabel="human-normalised score τ (1: a person)", ylabel="share of runs with score > τ")
    axis.set_ylim(0, 1)
    axis.legend()
    return figure


def _draw_curve(
    axis: Axes,
    places: Sequence[float],
    values: np.ndarray,
    bounds: tuple[np.ndarray, np.ndarray] | None,
    colour: str,
    label: str,
    style: str = "-",
) -> None:
    mark = "o" if len(places) <= TRAINING_BINS and style == "-" else ""
    axis.plot(places, values, style + mark, color=colour, label=label, linewidth=1.8, markersize=3)
    if bounds is not None:
        axis.fill_between(places, *bounds, color=colour, alpha=0.18, linewidth=0)
        if len(places) == 1:
            axis.vlines(places, *bounds, color=colour, alpha=0.6)


def _draw_reference(axis: Axes, mean: float, lowest: float, highest: float) -> None:
    look = {"fmt": "D", "color": REFERENCE_COLOUR, "markersize": 4, "capsize": 4}
    reach = [[mean - lowest], [highest - mean]]
    axis.errorbar([BENCHMARK_STEP], [mean], reach, label=f"{REFERENCE}, published range", **look)


def draw_game(
    game: str,
    grids: Mapping[str, DataFrame],
    runs: Sequence[Run],
    reference: tuple[float, float, float] | None,
    palette: Mapping[str, str],
) -> Figure:
    """Learning curves of one game: evaluations, training returns, STORM's published range.

    Args:
        grids: returns of the evaluations (steps, seeds) by label. runs: all of this game.
        reference: mean, lowest and highest return of STORM as published.
    """
    figure, axis = _new_figure()
    for run in runs:
        _draw_training_returns(axis, run, palette[run.label])
    for label, grid in grids.items():
        seeds, curve = grid.shape[1], mean_curve(grid.to_numpy().T)
        _draw_curve(axis, grid.index, *curve, palette[label], f"{label}, {seeds} seed{'s' * (seeds > 1)}")
    if reference is not None:
        _draw_reference(axis, *reference)
    axis.set_title(game, loc="left", fontsize=11, fontweight="bold")
    axis.set(xlabel="agent steps", ylabel="episode return")
    axis.set_xlim(left=0)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axis.xaxis.set_major_formatter("{x:,.0f}")
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8)
    return figure


def _draw_training_returns(axis: Axes, run: Run, colour: str) -> None:
    """Mean returns of the training episodes in TRAINING_BINS equal spans of steps."""
    history = run.history
    if len(history.returns):
        edges = np.linspace(0, max(history.return_steps.max(), 1), TRAINING_BINS + 1)
        spans = pandas.cut(history.return_steps, edges, include_lowest=True)
        means = Series(history.returns).groupby(spans, observed=True).mean()
        axis.plot([span.mid for span in means.index], means, color=colour, linewidth=0.8, alpha=0.45)
