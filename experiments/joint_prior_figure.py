"""The figure of experiments/joint_prior.py: bars, sample frames, and the end-to-end curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.figures import save

SAMPLES = 8  # frames shown of each prior
GAP = 2  # pixels between them
LONGEST_BAR = 1.6  # leaves room for the text beside a bar of 1
GOOD, BAD, OTHER = "#009E73", "#D55E00", "#9AA3AD"  # Okabe and Ito (2008)


def draw(record: dict[str, Any], frames: dict[str, np.ndarray], path: Path) -> None:
    """Write the figure of a result.

    Args:
        record: what the experiment writes as JSON.
        frames: uint8 (N, S, S, 3) by prior, the same names as in record["priors"].
    """
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    widths = [2.6, 2.4, 2.6] if record["end_to_end"] else [2.6, 2.4]
    axes = figure.subplots(1, len(widths), width_ratios=widths)
    draw_bars(axes[0], record["priors"])
    draw_samples(axes[1], [frames[name] for name in record["priors"]])
    if record["end_to_end"]:
        draw_curves(axes[2], record["end_to_end"])
    settings = record["settings"]
    figure.suptitle(
        f"Twins: imagined frames whose parts agree ({settings['latents']}×{settings['classes']} latents)"
    )
    save(figure, path)


def draw_bars(axes: Axes, priors: dict[str, dict[str, float]]) -> None:
    """Share of consistent frames by prior, with the cost beside it."""
    names = list(priors)
    shares = [priors[name]["consistent"] for name in names]
    colours = [
        OTHER if name == "posterior" else GOOD if share >= 0.5 else BAD
        for name, share in zip(names, shares, strict=True)
    ]
    axes.barh(names, shares, color=colours)
    for row, name in enumerate(names):
        time = priors[name].get("relative_time")
        text = f" {shares[row]:.2f}" + (f", {time:.1f}× time" if time else "")
        axes.text(shares[row], row, text, va="center")
    axes.invert_yaxis()
    axes.set(xlim=(0, LONGEST_BAR), xticks=(0, 0.5, 1), xlabel="share of consistent frames")


def draw_samples(axes: Axes, frames: list[np.ndarray]) -> None:
    """One row of frames for each prior."""
    rows = [np.concatenate([pad(frame) for frame in each[:SAMPLES]], axis=1) for each in frames]
    axes.imshow(np.concatenate(rows, axis=0), aspect="auto", interpolation="nearest")
    axes.set_axis_off()
    axes.set_title("samples", fontsize="medium")


def pad(frame: np.ndarray) -> np.ndarray:
    """A frame uint8 (S, S, 3) with a white border."""
    return np.pad(frame, ((GAP, GAP), (GAP, GAP), (0, 0)), constant_values=255)


def draw_curves(axes: Axes, curves: dict[str, list[dict[str, float]]]) -> None:
    """Share of consistent frames while whole world models train."""
    for (name, curve), colour in zip(curves.items(), (BAD, GOOD), strict=True):
        axes.plot(
            [point["step"] for point in curve],
            [point["consistent"] for point in curve],
            label=name,
            color=colour,
        )
    axes.set(ylim=(0, 1), xlabel="steps, everything trained together", ylabel="share of consistent frames")
    axes.legend(frameon=False)
