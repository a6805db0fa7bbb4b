"""Shows how well a world model predicts: `eval.py -world_model` prints a table and writes files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from pandas import DataFrame, MultiIndex

from compute.execution import Execution
from evaluation.predictions import measure
from evaluation.target import Target
from run_files.loggers import encode_gif
from utils import resolve_device, write_atomically

DOTS_PER_INCH = 120
VIDEO_FPS = 5.0  # slow enough to compare
SHOWN = {  # column → group and name in the printed table and the figure
    "changed_share": ("share of windows", "changed"),
    "changed_model_error": ("error of changed windows", "predicted"),
    "changed_copy_error": ("error of changed windows", "copied"),
    "changed_reconstruction_error": ("error of changed windows", "decoded"),
    "moved_model_error": ("error of changed numbers", "predicted"),
    "moved_copy_error": ("error of changed numbers", "copied"),
    "reward_accuracy": ("reward's sign right", "predicted"),
    "zero_reward_accuracy": ("reward's sign right", "always 0"),
    "termination_accuracy": ("termination right", "predicted"),
    "no_termination_accuracy": ("termination right", "never"),
    "prior_kl": ("prior", "KL"),
    "prior_perplexity": ("prior", "perplexity"),
}


def report_world_model(target: Target) -> None:
    """Judge the world model of a target's last checkpoint, print and write the result."""
    settings = target.config.BasicSettings
    execution = Execution(settings, resolve_device(settings.device))
    result, video = measure(target.config, execution, target.checkpoints, target.steps[-1], settings.Seed)
    print(table(result))
    paths = write_report(result, video, target.run.shown / target.file_name("world_model"))
    print(f"wrote {', '.join(map(str, paths))}")


def table(result: dict[str, Any]) -> str:
    """Return the result as a few lines of text."""
    frame = by_horizon(result)
    errors = frame["error of changed windows"].dropna()
    better = (errors.predicted < errors.copied).sum()
    return "\n".join(
        [
            f"{title(result)}: {result['windows']} windows of {len(result['episode_returns'])} held-out "
            f"episodes, context {result['context']}",
            frame.to_string(float_format="{:.4f}".format),
            f"better than copying at {better} of {len(errors)} horizons at which the observation changes; "
            f"correlation of told and true rewards, all frames seen: {result['reward_correlation']:.2f}",
        ]
    )


def title(result: dict[str, Any]) -> str:
    """Return what was judged, in words."""
    return f"{result['env_name']}, {result['model']} at step {result['step']}"


def by_horizon(result: dict[str, Any]) -> DataFrame:
    """Return the columns that are SHOWN, a row for each horizon from 1 on."""
    frame = DataFrame(result["by_horizon"])[list(SHOWN)]
    frame.index += 1
    frame.columns = MultiIndex.from_tuples(SHOWN.values())
    return frame


def plot(result: dict[str, Any]) -> Figure:
    """Return a figure with a panel for each group of columns."""
    frame = by_horizon(result)
    groups = frame.columns.unique(level=0)
    figure = Figure(figsize=(12, 6), layout="constrained")
    for axes, group in zip(figure.subplots(2, len(groups) // 2).flat, groups, strict=True):
        frame[group].plot(ax=axes, title=group, xlabel="horizon in steps").set_ylim(bottom=0)
    figure.suptitle(f"{title(result)}: open-loop predictions")
    return figure


def write_report(result: dict[str, Any], video: np.ndarray | None, path: Path) -> list[Path]:
    """Write `path` with the endings .json, .png and, of images, .gif; return their paths."""
    plain = json.loads(json.dumps(result), parse_constant=lambda _: None)  # JSON knows no nan
    contents = {
        "json": json.dumps(plain, indent=1),
        "png": lambda file: plot(result).savefig(file, format="png", dpi=DOTS_PER_INCH),
    }
    if video is not None:
        contents["gif"] = encode_gif(video, VIDEO_FPS)
    paths = {path.with_name(f"{path.name}.{ending}"): content for ending, content in contents.items()}
    for each, content in paths.items():
        write_atomically(each, content)
    return list(paths)
