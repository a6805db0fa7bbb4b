"""Shows how well held-out clips are predicted: `eval.py -video` prints a table and writes files."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from pandas import DataFrame

from compute.execution import Execution
from configuration.loading import load_saved_config
from configuration.schema import Config, VideoPrediction
from evaluation.clips import Clips
from evaluation.policies import load_models
from evaluation.target import Target, read_target
from evaluation.video_metrics import FrameNetwork, Network, frame_scores
from evaluation.video_prediction import COPY, Judgement, Measure, copies, judge, predictors_of
from run_files.manifest import read_json
from run_files.provenance import machine_facts
from utils import UserError, resolve_device, write_atomically

DOTS_PER_INCH = 120
BATCH = 32  # windows that are predicted at once
FRAME_FRECHET = "frechet_efficientnet_lite0"
DISTANCES = ("fvd", FRAME_FRECHET)
COLUMNS = ("mse", "psnr", "ssim", "lpips", *DISTANCES, "prior_perplexity", "code_perplexity", "seconds")
PANELS = {
    "mse": "mean square error",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "prior_perplexity": "prior perplexity",
}
SHOWN_CONTEXT, SHOWN_FRAMES = 2, 12  # frames of a strip before the prediction, and at most in it
GAP, WHITE = 2, 255  # pixels between pictures, and their colour


def report_video(target: Target, options: argparse.Namespace) -> None:
    """Judge the last checkpoint of a run, and of those beside it, print and write the result."""
    result, found = judge_runs(target, options)
    print(table(result))
    plans = ["-".join(map(str, plan)) for plan in options.plans]
    beside = [f"beside {' '.join(options.beside)}"] if options.beside else []
    path = target.run.shown / target.file_name("video", *plans, *beside)
    written = write_report(result, found, target.config.Evaluation.VideoWindows, path)
    print(f"wrote {', '.join(map(str, written))}")


def judge_runs(
    target: Target, options: argparse.Namespace, measures: Sequence[Measure] = (frame_scores,)
) -> tuple[dict[str, Any], Judgement]:
    """Judge runs on the clips that none was trained on.

    Args:
        measures: of frames, to which LPIPS is added if the options name its network.

    Returns:
        The result, ready for JSON, and the first windows.

    Raises:
        UserError: a run was not trained on clips, or on others; or something cannot be read.
    """
    others = [
        argparse.Namespace(**{**vars(options), "run_name": name, "ckpt_dir": None}) for name in options.beside
    ]
    targets = [target, *map(read_target, others)]
    check_same_split(targets)
    if options.plans and all(each.config.JointTrainAgent.ModelType == "STORM" for each in targets):
        raise UserError("-plans: none of the runs has a MaskGIT prior")
    config, video = target.config, target.config.VideoPrediction
    execution = Execution(config.BasicSettings, resolve_device(config.BasicSettings.device))
    features = {}
    if options.fvd_network:
        features["fvd"] = Network("fvd_network", options.fvd_network, execution.device).features
    if options.frame_features:
        features[FRAME_FRECHET] = FrameNetwork(execution.device).features
    if options.lpips_network:
        measures = [*measures, Network("lpips_network", options.lpips_network, execution.device).lpips]
    length = video.Context + video.Horizon
    with contextlib.closing(Clips(saved_config(target), True, target.run.shown, length)) as clips:
        check_never_trained_on(clips, targets)
        predictors = {COPY: copies(video.Context)}
        for each in targets:
            check_length(each, video)
            models = load_models(each.config, clips.spaces, execution, each.checkpoints, each.steps[-1])
            predictors |= predictors_of(
                each.run.name, models.world_model, options.plans, video.Context, target.seed
            )
        batches = clips.spread(video.Clips * video.Groups, length, BATCH)
        found = judge(predictors, batches, video.Context, video.Clips, measures, features)
    return {
        "steps": {each.run.name: each.steps[-1] for each in targets},
        "seed": target.seed,
        **machine_facts(execution.device),
        "context": video.Context,
        "horizon": video.Horizon,
        "windows": found.windows,
        "group": min(video.Clips, found.windows),
        "clips": list(clips.files),
        "notes": clips.notes,
        "predictors": found.results,
    }, found


def saved_config(target: Target) -> Config:
    """Return the config that a run was trained with, whatever is asked for now."""
    return load_saved_config(target.run.config_file)


def check_same_split(targets: list[Target]) -> None:
    """Raise UserError unless all were trained on the same part of the same clips."""
    kinds: dict[str, dict[str, Any]] = {}
    for target in targets:
        if target.run.name in kinds:
            raise UserError(f"-beside: two runs are named {target.run.name}")
        config = saved_config(target)
        settings = config.BasicSettings
        if config.Task != "VideoPrediction":
            raise UserError(f"-video: run {target.run.name} was not trained on clips (Task=VideoPrediction)")
        kinds[target.run.name] = {
            "BasicSettings.trajectory_path": settings.trajectory_path,
            "BasicSettings.Seed": settings.Seed,
            "BasicSettings.ImageSize": settings.ImageSize,
            "VideoPrediction.HeldOutShare": config.VideoPrediction.HeldOutShare,
        }
    first, *rest = kinds
    for name in rest:
        for key, value in kinds[name].items():
            if value != kinds[first][key]:
                known = kinds[first][key]
                raise UserError(f"-beside={name}: other clips were held out: {key} is {value}, not {known}")


def check_never_trained_on(clips: Clips, targets: list[Target]) -> None:
    """Raise UserError if a run was trained when other clips were held out."""
    for target in targets:
        known = read_json(target.run.status_file).get("held_out")
        if isinstance(known, dict):
            new = (name for name, mark in clips.files.items() if known.get(name) != mark)
            which = next((f"{name} was not held out" for name in new), None)
        else:
            which = "its run.json does not say what was held out"
        if which is not None:
            raise UserError(f"run {target.run.name}: {which} when it was trained; are the clips others now?")


def check_length(target: Target, video: VideoPrediction) -> None:
    """Raise UserError if windows are longer than those of a run's training."""
    longest = target.config.JointTrainAgent.BatchLength
    if video.Context + video.Horizon > longest:
        raise UserError(
            f"VideoPrediction.Horizon={video.Horizon}: with Context={video.Context} at most "
            f"JointTrainAgent.BatchLength={longest}, on which {target.run.name} was trained"
        )


def table(result: dict[str, Any]) -> str:
    """Return the totals as text, a line for each predictor."""
    frame = DataFrame(result["predictors"]).T
    frame = frame[[name for name in COLUMNS if name in frame]].astype(float)
    title = (
        f"{result['windows']} windows of {len(result['clips'])} held-out clips, context {result['context']}"
    )
    lines = [
        f"{title}, horizon {result['horizon']}",
        frame.to_string(float_format="{:.4f}".format, na_rep="–"),
    ]
    if result["windows"] < 2 * result["group"] and set(DISTANCES) & set(frame):
        lines.append(f"Fréchet distance of {result['group']} windows: smaller groups give larger distances")
    return "\n".join([*result["notes"], *lines])


def plot(result: dict[str, Any]) -> Figure:
    """Return a figure with a panel for each measure by horizon."""
    figure = Figure(figsize=(12, 6), layout="constrained")
    steps = np.arange(1, result["horizon"] + 1)
    for axes, (measure, title) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        for number, (name, found) in enumerate(result["predictors"].items()):
            if measure in found["by_horizon"]:
                axes.plot(steps, found["by_horizon"][measure], label=name, color=f"C{number}")
        axes.set(title=title, xlabel="horizon in frames")
    figure.axes[0].legend(fontsize="small")
    figure.suptitle(f"{result['windows']} held-out windows, context {result['context']}")
    return figure


def strip(found: Judgement, context: int, windows: int) -> Figure:
    """Return pictures of windows that lie apart: the truth, below it each prediction, along time."""
    windows = min(windows, len(found.truth))
    chosen = ((np.arange(windows) + 0.5) * len(found.truth) / windows).astype(int)  # neighbours overlap
    truth = found.truth[chosen]
    horizon = truth.shape[1] - context
    before = list(range(max(0, context - SHOWN_CONTEXT), context))
    after = np.unique(np.linspace(0, horizon - 1, min(horizon, SHOWN_FRAMES)).round().astype(int))
    size = truth.shape[2]
    figure = Figure(layout="compressed")
    height = len(found.shown) + 1
    figure.set_size_inches(1 + 0.8 * (len(before) + len(after)), 0.8 * height * len(truth) + 0.5)
    for number, axes in enumerate(figure.subplots(len(truth), squeeze=False).flat):
        blank = np.full((len(before), size, size, 3), WHITE, np.uint8)
        rows = [np.concatenate([truth[number, before], truth[number, context + after]])]
        rows += [np.concatenate([blank, frames[chosen[number], after]]) for frames in found.shown.values()]
        axes.imshow(tiles(np.stack(rows)), interpolation="nearest")
        axes.set_yticks((np.arange(height) + 0.5) * (size + GAP), ["truth", *found.shown])
        labels = [place - context + 1 for place in before] + (after + 1).tolist()
        axes.set_xticks((np.arange(len(labels)) + 0.5) * (size + GAP), labels)
        axes.tick_params(length=0, labelsize="small")
        axes.spines[:].set_visible(False)
    return figure


def tiles(pictures: np.ndarray) -> np.ndarray:
    """Return uint8 (rows, columns, S, S, 3) as one picture, with gaps between."""
    padded = np.pad(pictures, ((0, 0), (0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=WHITE)
    rows, columns, height, width, _ = padded.shape
    return padded.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)


def write_report(result: dict[str, Any], found: Judgement, windows: int, path: Path) -> list[Path]:
    """Write `path` with the endings .json, .png and _strip.png; return their paths."""
    figures = {".png": plot(result), "_strip.png": strip(found, result["context"], windows)}
    contents: dict[str, Any] = {".json": json.dumps(result, indent=1)}
    for ending, figure in figures.items():
        contents[ending] = lambda file, figure=figure: figure.savefig(
            file, format="png", dpi=DOTS_PER_INCH, bbox_inches="tight"
        )
    for ending, content in contents.items():
        write_atomically(path.with_name(path.name + ending), content)
    return [path.with_name(path.name + ending) for ending in contents]
