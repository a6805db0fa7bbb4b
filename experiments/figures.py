"""Figures of the experiments: returns and evaluations, and what to look at while training."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils import write_atomically

COLOURS = {"STORM": "#0072B2", "GITSTORM": "#D55E00"}  # Okabe and Ito (2008)
VARIANTS = ("#E69F00", "#56B4E9", "#000000", "#999999")  # of configs with other settings
DOTS_PER_INCH = 160
HEALTH = {  # tag → title of its panel
    "WorldModel/reconstruction_loss": "reconstruction, squared error",
    "WorldModel/dynamics_real_kl_div": "KL, nats (of GIT-STORM often masked latents only)",
    "WorldModel/posterior_entropy": "posterior entropy, nats a latent",
    "ActorCritic/entropy_loss": "policy entropy, nats",
    "ActorCritic/S": "range that advantages are divided by, S",
    "ActorCritic/value_explained": "share of returns that the value explains",
}
AVERAGED = 5  # logged updates averaged in them
SAMPLES = 8  # frames shown of each prior
GAP = 2  # pixels between them
LONGEST_BAR = 1.6  # leaves room for the text beside a bar of 1
GOOD, BAD, OTHER = "#009E73", "#D55E00", "#9AA3AD"  # Okabe and Ito (2008)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, its panels without frames above and to the right."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=DOTS_PER_INCH))


def draw_health(record: dict[str, Any], path: Path) -> None:
    """Write the figure of the health curves of a record's first seed, of every model that has any."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    panels = figure.subplots(2, len(HEALTH) // 2, sharex=True).flat
    first = min(run["seed"] for run in record["runs"])
    runs = [run for run in record["runs"] if run["seed"] == first and run.get("health", {}).get("step")]
    if not runs:
        return
    colours = colours_of(run["model"] for run in runs)
    for axes, (tag, title) in zip(panels, HEALTH.items(), strict=True):
        for run in runs:
            steps, values = running_mean(run["health"]["step"], run["health"][tag], AVERAGED)
            axes.plot(steps, values, color=colours[run["model"]], label=run["model"])
        axes.set_title(title, fontsize="medium")
    panels = figure.axes
    panels[0].set_yscale("log")
    panels[0].legend(frameon=False)
    for axes in panels[-3:]:
        axes.set_xlabel("agent steps")
    save(figure, path)


def colours_of(models: Iterable[str]) -> dict[str, str]:
    """Return a colour of its own for each model, a config's name, or that of a variant after it."""
    labels = sorted(set(models))
    known = {label.split("-")[0]: label for label in reversed(labels) if " " not in label}
    plain = {label: COLOURS[kind] for kind, label in known.items() if kind in COLOURS}
    others = [label for label in labels if label not in plain]
    return plain | dict(zip(others, itertools.cycle(VARIANTS), strict=False))


def running_mean(
    steps: Sequence[float], values: Sequence[float], length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Means of `length` values in a row, each at the last one's step."""
    length = min(length, len(values))
    return np.asarray(steps)[length - 1 :], np.convolve(values, np.full(length, 1 / length), mode="valid")


def draw_priors(record: dict[str, Any], frames: dict[str, np.ndarray], path: Path) -> None:
    """Write the figure of experiments/joint_prior.py: bars, sample frames, and the end-to-end curves.

    Args:
        record: what the experiment writes as JSON.
        frames: uint8 (N, S, S, 3) by prior, the same names as in record["priors"].
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    widths = [2.6, 2.4, 2.6] if record["end_to_end"] else [2.6, 2.4]
    bars, samples, *curves = figure.subplots(1, len(widths), width_ratios=widths)
    draw_shares(bars, record["priors"])
    draw_samples(samples, [frames[name] for name in record["priors"]])
    for axes in curves:
        for (name, curve), colour in zip(record["end_to_end"].items(), (BAD, GOOD), strict=True):
            points = [(point["step"], point["consistent"]) for point in curve]
            axes.plot(*zip(*points, strict=True), label=name, color=colour)
        axes.set(
            ylim=(0, 1), xlabel="steps, everything trained together", ylabel="share of consistent frames"
        )
        axes.legend(frameon=False)
    size = "{latents}×{classes}".format(**record["settings"])
    figure.suptitle(f"Twins: imagined frames whose parts agree ({size} latents)")
    save(figure, path)


def draw_shares(axes: Axes, priors: dict[str, dict[str, float]]) -> None:
    """Share of consistent frames by prior, with the cost beside it."""
    shares = {name: result["consistent"] for name, result in priors.items()}
    colours = {name: GOOD if share >= 0.5 else BAD for name, share in shares.items()} | {"posterior": OTHER}
    bars = axes.barh(list(shares), shares.values(), color=[colours[name] for name in shares])
    costs = [f", {cost:.1f}× time" if (cost := each.get("relative_time")) else "" for each in priors.values()]
    labels = [f"{share:.2f}{cost}" for share, cost in zip(shares.values(), costs, strict=True)]
    axes.bar_label(bars, labels, padding=3)
    axes.invert_yaxis()
    axes.set(xlim=(0, LONGEST_BAR), xticks=(0, 0.5, 1), xlabel="share of consistent frames")


def draw_samples(axes: Axes, frames: list[np.ndarray]) -> None:
    """One row of frames, uint8 (N, S, S, 3), for each prior, with white between them."""
    border = ((0, 0), (GAP, GAP), (GAP, GAP), (0, 0))
    shown = np.stack([np.pad(each[:SAMPLES], border, constant_values=255) for each in frames])
    picture = rearrange(shown, "row column h w colour -> (row h) (column w) colour")
    axes.imshow(picture, aspect="auto", interpolation="nearest")
    axes.set_axis_off()
    axes.set_title("samples", fontsize="medium")
