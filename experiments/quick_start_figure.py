"""The figure of experiments/quick_start.py: training returns by step, and the final evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils import write_atomically

SMOOTHED = 3  # training episodes averaged in a curve
COLOURS = ("#0072B2", "#D55E00")  # Okabe and Ito (2008)
RANDOM = "#6B7280"
DOTS_PER_INCH = 160


def draw(record: dict[str, Any], path: Path) -> None:
    """Write the figure of a result, as the experiment writes it in JSON."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    curves, final = figure.subplots(1, 2, width_ratios=[2, 1])
    presets = list(dict.fromkeys(row["preset"] for row in record["runs"]))
    colours = dict(zip(presets, COLOURS, strict=True))
    draw_curves(curves, record, colours)
    draw_evaluations(final, record, colours)
    for axes in (curves, final):
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=DOTS_PER_INCH))


def draw_curves(axes: Axes, record: dict[str, Any], colours: dict[str, str]) -> None:
    """One line per run: the running mean of its training returns."""
    for row in record["runs"]:
        steps, returns = np.asarray(row["training_returns"]).T
        kernel = min(SMOOTHED, len(returns))
        smooth = np.convolve(returns, np.full(kernel, 1 / kernel), mode="valid")
        label = row["preset"] if row["seed"] == record["runs"][0]["seed"] else None
        axes.plot(steps[kernel - 1 :], smooth, color=colours[row["preset"]], label=label)
    axes.axhline(record["random"]["mean_return"], color=RANDOM, linestyle="--", label="random play")
    axes.set(xlabel="environment steps", ylabel=f"return, mean of {SMOOTHED} training episodes")
    axes.set_title(record["game"])
    axes.legend(frameon=False)


def draw_evaluations(axes: Axes, record: dict[str, Any], colours: dict[str, str]) -> None:
    """The evaluations' means with their intervals, beside that of random play."""
    rows = [("random", record["random"], RANDOM)]
    rows += [(f"seed {row['seed']}", row, colours[row["preset"]]) for row in record["runs"]]
    for place, (_, row, colour) in enumerate(rows):
        low, high = row["interval"]
        axes.plot([place, place], [low, high], color=colour, linewidth=2)
        axes.plot(place, row["mean_return"], "o", color=colour)
    axes.set_xticks(range(len(rows)), [name for name, _, _ in rows], rotation=60, ha="right")
    axes.set(ylabel="evaluation: mean and 95 % interval")
