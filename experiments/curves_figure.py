"""The figure of a grid: our training returns by step, every seed, beside published ones."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from experiments.figures import colours_of, running_mean, save
from experiments.training import interval, read_record

LEVELS = {"random play": ":", "a person": "-."}
OTHERS = {"DreamerV3": "#009E73", "DMPO": "#CC79A7", "PPO": "#6B7280"}
AVERAGED, SMOOTHED = 5, 0.1  # training episodes in a point of our curves: so many, or this share of a run's
FEW = 4  # lines of a model that can still be told apart; of more their mean is drawn, and they are thin
POINTS = 200  # of a mean
COLUMNS = 3  # at most, so that a page's width leaves them legible


def draw(records: Sequence[Path], published: Path | None, path: Path) -> None:
    """Draw one panel per task: lines of ours by seed, means and ranges of others, levels to compare with."""
    others = json.loads(published.read_text()) if published else {"steps": [], "methods": {}}
    tasks = [read_record(record) for record in records]
    colours = colours_of(run["model"] for task in tasks for run in task["runs"])
    rows = math.ceil(len(tasks) / COLUMNS)
    columns = math.ceil(len(tasks) / rows)
    figure = Figure(figsize=(max(6.0, 3.4 * columns), 2.8 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for task, axes in zip(tasks, panels, strict=False):  # in this order no panel is lost
        draw_task(axes, task, others, colours)
    for axes in list(panels):
        axes.set_visible(False)
    named = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    figure.legend(
        named.values(), named.keys(), loc="outside lower center", ncols=round(1.5 * columns), frameon=False
    )
    save(figure, path)


def draw_model(axes: Axes, runs: list[dict[str, Any]], label: str, colour: str, end: int) -> None:
    """Draw the runs of one model, and the mean of many."""
    lines = []
    for run in runs:
        returns = np.array(run["training_returns"] or [(math.nan, math.nan)], float)  # one is for the legend
        lines.append(running_mean(*returns.T, max(AVERAGED, round(SMOOTHED * len(returns)))))
        for at, values in run.get("evaluations", []):
            low, high = interval(values)
            axes.plot([at, at], [low, high], color=colour, lw=1)
            axes.plot(at, statistics.fmean(values), "o", color=colour, ms=3)
    many = len(lines) > FEW
    for line in lines:
        axes.plot(*line, color=colour, lw=0.6 if many else 1.4, alpha=0.5 if many else 1, label=label)
    if many:
        steps = np.linspace(max(line[0][0] for line in lines), end, POINTS)
        mean = np.mean([np.interp(steps, *line) for line in lines], axis=0)
        axes.plot(steps, mean, color=colour, lw=2.5, label=label)


def draw_task(axes: Axes, record: dict[str, Any], others: dict[str, Any], colours: dict[str, str]) -> None:
    """Draw one task, its models in the colours that they have in every panel."""
    step = record.get("step", "simulator_steps")
    end = max(run[step] for run in record["runs"])
    steps = np.array(others["steps"])
    for name, colour in OTHERS.items():
        seeds = others["methods"].get(name, {}).get(record["task"].replace("-", "_"), {})
        if not seeds:
            continue
        table = np.array(list(seeds.values()), dtype=float)
        known = (steps <= end) & ~np.isnan(table).all(0)
        table, shown = table[:, known], steps[known]
        axes.fill_between(shown, np.nanmin(table, 0), np.nanmax(table, 0), color=colour, alpha=0.12, lw=0)
        axes.plot(shown, np.nanmean(table, 0), color=colour, lw=1.2, ls="--", label=f"{name} (mean, range)")
    for model, colour in colours.items():
        runs = [run for run in record["runs"] if run["model"] == model]
        draw_model(axes, runs, model, colour, end)
    for name, level in record.get("levels", {}).items():
        axes.axhline(level, color="#6B7280", lw=1, ls=LEVELS[name], label=name)
    axes.set_title(record["task"], fontsize="medium")
    axes.set(xlabel=step.replace("_", " "), ylabel="training return")
    axes.set_xlim(0, 1.02 * end)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if axes.dataLim.y0 >= 0:
        axes.set_ylim(bottom=0)
