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
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"  # Okabe and Ito (2008)
PANELS = {  # axis → its bounds; column → label, colour, line
    "squared error where the observation changes": (
        (0, None),
        {
            "changed_model_error": ("prediction", BLUE, "-"),
            "changed_copy_error": ("last observation copied", ORANGE, "-"),
            "changed_reconstruction_error": ("truth, encoded and decoded", GREEN, "--"),
        },
    ),
    "accuracy": (
        (0, 1.02),
        {
            "reward_accuracy": ("sign of the reward", BLUE, "-"),
            "zero_reward_accuracy": ("… always 0", BLUE, ":"),
            "termination_accuracy": ("termination", ORANGE, "-"),
            "no_termination_accuracy": ("… never", ORANGE, ":"),
        },
    ),
    "perplexity of a latent": (
        (1, None),
        {"prior_perplexity": ("prior, of the truth's latents", BLUE, "-")},
    ),
}
SHOWN = {  # column → its heading in the printed table
    "changed_share": ("changed windows", "share"),
    "changed_model_error": ("changed windows", "error"),
    "changed_copy_error": ("changed windows", "copied"),
    "moved_model_error": ("changed numbers", "error"),
    "moved_copy_error": ("changed numbers", "copied"),
    "reward_accuracy": ("sign of reward", "right"),
    "zero_reward_accuracy": ("sign of reward", "always 0"),
    "termination_accuracy": ("termination", "right"),
    "no_termination_accuracy": ("termination", "never"),
    "prior_kl": ("prior", "KL"),
    "prior_perplexity": ("prior", "perplexity"),
}


def report_world_model(target: Target) -> None:
    """Judge the world model of a target's last checkpoint, print and write the result."""
    settings = target.config.BasicSettings
    execution = Execution(settings, resolve_device(settings.device))
    result, video = measure(target.config, execution, target.checkpoints, target.steps[-1], target.seed)
    print(table(result))
    paths = write_report(result, video, target.results, target.run.name)
    print(f"wrote {', '.join(map(str, paths))}")


def table(result: dict[str, Any]) -> str:
    """Return the result as a few lines of text."""
    prior, frame = result["prior"], DataFrame(result["by_horizon"])[list(SHOWN)]
    frame.index += 1
    frame.columns = MultiIndex.from_tuples(SHOWN.values())
    verdict = "at every" if result["beats_copy_where_changed"] else "NOT at every"
    return "\n".join(
        [
            f"{result['env_name']}, {result['model']} at step {result['step']}: {result['windows']} windows "
            f"of {len(result['episode_returns'])} held-out episodes, context {result['context']}",
            frame.to_string(float_format="{:.4f}".format),
            f"better than copying {verdict} horizon at which the observation changes",
            f"prior: KL {prior['kl']:.2f} nats a step, perplexity {prior['perplexity']:.2f} a latent, "
            f"entropy {prior['prior_entropy']:.2f} (posterior {prior['posterior_entropy']:.2f}) nats",
        ]
    )


def plot(result: dict[str, Any]) -> Figure:
    """Return a figure of errors, accuracies, and the prior's perplexity, by horizon."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, (name, (bounds, lines)) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for column, (label, colour, style) in lines.items():
            values = result["by_horizon"][column]
            axes.plot(range(1, len(values) + 1), values, style, color=colour, label=label)
        axes.set(xlabel="horizon in steps", ylabel=name, ylim=bounds)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.suptitle(f"{result['env_name']}, {result['model']}, step {result['step']}: open-loop predictions")
    return figure


def write_report(result: dict[str, Any], video: np.ndarray | None, folder: Path, run_name: str) -> list[Path]:
    """Write <run>_world_model.json, .png and, of images, .gif; return their paths."""
    plain = json.loads(json.dumps(result), parse_constant=lambda _: None)  # JSON knows no nan
    text = json.dumps(plain, indent=1)
    contents = {
        "json": lambda file: file.write(text.encode()),
        "png": lambda file: plot(result).savefig(file, format="png", dpi=DOTS_PER_INCH),
    }
    if video is not None:
        contents["gif"] = lambda file: file.write(encode_gif(video, VIDEO_FPS))
    paths = {folder / f"{run_name}_world_model.{ending}": write for ending, write in contents.items()}
    for path, write in paths.items():
        write_atomically(path, write)
    return list(paths)
