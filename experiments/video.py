"""Compares priors in video prediction: what does a masked prior gain, and what does it cost?

    python -m experiments.video [--data Seaquest MsPacman] [--seeds 0 1 2] [--steps 3000] [--out DIR]

Clips are recorded into clips/<data> of the present folder; those of a game by a small agent, which is
trained first. Runs go to outputs/, on one thread each; what is there already is continued, or only
judged. STORM's prior, and MaskGIT trained with both KLOver, each sampled at several plans, learn the
same clips; all are judged on the same windows of held-out ones. Writes <out>/<data>.json: every measure
of every seed, and means with 95 % intervals (Student's t); <out>/<data>.png: measures against the time;
and <out>/<data>_strip.png, of the first seed.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from configuration.checks import read_value
from environments.diagnostic import is_consistent
from environments.single import environment_id
from evaluation import record
from evaluation.options import parse_options
from evaluation.target import read_target
from evaluation.video_metrics import frame_scores
from evaluation.video_prediction import Judgement
from evaluation.video_report import FRAME_FRECHET, judge_runs, strip
from experiments import training
from experiments.figures import save
from experiments.joint_prior import judge as judge_frames
from experiments.training import add_at_a_time, experiment_parser, interval, run_facts, write_record
from reporting.statistics import CONFIDENCE
from utils import run_cli

PLAYER, GAMES = "STORM-tiny", ("Seaquest", "MsPacman")


def player(game: str) -> str:
    """The name of the agent that plays a game, that of experiments.quick_start."""
    return f"{game}-{PLAYER}-seed_0"


SMALL = ("-steps=32000", "BasicSettings.ImageSize=32")
DATA = {  # name → options of evaluation.record
    "digits": ("-random=Diagnostic/Digits-v0", *SMALL),
    "twins": ("-random=Diagnostic/Twins-v0", "-without_actions", *SMALL),
    **{game: (f"-run_name={player(game)}", "-steps=20000", "-device=cpu") for game in GAMES},
}
MODELS = {  # name → config, overrides
    "STORM": ("STORM-video", []),
    "masked": ("GITSTORM-video", ["Models.MaskGit.KLOver=masked"]),
    "all": ("GITSTORM-video", ["Models.MaskGit.KLOver=all"]),
}
SMALL_CODE = ("StemChannels=8", "NumLatents=16", "NumClasses=16", "ReconstructionWeight=1")
SETTINGS = {"twins": [f"Models.WorldModel.{setting}" for setting in SMALL_CODE]}  # enough for 16 pictures
PLANS = "1/1/1,2/2/1,4/4/1,8/8/2"
WINDOWS = 256
STRIPS = 1  # windows in the picture
PANELS = {
    "mse": "mean square error",
    "ssim": "SSIM",
    FRAME_FRECHET: "Fréchet distance, EfficientNet-Lite0",
    "prior_perplexity": "prior perplexity",
}


def run_name(data: str, model: str, seed: int) -> str:
    """The name of a run, a folder of outputs/."""
    return f"{data}-{model}-seed_{seed}"


def record_clips(data: str) -> None:
    """Record a data set, unless it is there; a game's after its player has been trained."""
    folder, unfinished = Path("clips", data), Path("clips", f"{data}.unfinished")
    if folder.is_dir():
        return
    if data in GAMES:
        setting = f"BasicSettings.env_name={environment_id(data)}"
        training.train(player(data), PLAYER, [setting], Path.cwd())
    shutil.rmtree(unfinished, ignore_errors=True)
    record.main([*DATA[data], f"-out={unfinished}"])
    unfinished.rename(folder)


def train(data: str, model: str, seed: int, steps: int) -> dict[str, Any]:
    """Train one run; what its record says of it."""
    name, (config, overrides) = run_name(data, model, seed), MODELS[model]
    settings = [
        f"BasicSettings.trajectory_path={Path('clips', data).absolute()}",
        f"BasicSettings.Seed={seed}",
    ]
    settings += [f"JointTrainAgent.{key}={steps}" for key in ("SampleMaxSteps", "SaveEverySteps")]
    training.train(name, config, [*settings, *SETTINGS.get(data, []), *overrides], Path.cwd())
    return {"data": data, "model": model, "seed": seed, **run_facts(name, Path.cwd())}


def judge(data: str, models: list[str], seed: int) -> tuple[dict[str, Any], Judgement]:
    """Judge the models of a data set and a seed on the same held-out windows."""
    first, *others = (run_name(data, model, seed) for model in models)
    plans = [f"-plans={PLANS}"] if set(models) != {"STORM"} else []
    options = parse_options(
        [f"-run_name={first}", "-video", f"-beside={','.join(others)}", *plans, "-checkpoints=last",
         "-device=cpu", "-frame_features", f"VideoPrediction.Clips={WINDOWS}"]
    )  # fmt: skip
    measures = [frame_scores]
    if data == "twins":
        measures.append(lambda truth, predicted: {"consistent": is_consistent(predicted).astype(float)})
    result, found = judge_runs(read_target(options), options, measures)
    if data == "twins":
        for name, frames in found.shown.items():
            entropy = judge_frames(frames.reshape(-1, *frames.shape[2:]))["class_entropy"]
            result["predictors"][name]["class_entropy"] = entropy  # of its first windows, 1 if uniform
    plain = {name: name.replace(f"{data}-", "").replace(f"-seed_{seed}", "") for name in result["predictors"]}
    result["predictors"] = {plain[name]: each for name, each in result["predictors"].items()}
    return result, found


def summarise(judgements: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Mean of each measure by predictor; of several seeds its 95 % interval, and how far it is above STORM's.

    The seeds share their windows, so the difference is paired by seed.
    """
    summary: dict[str, dict[str, dict[str, Any]]] = {}
    for name, found in judgements[0]["predictors"].items():
        for measure in (each for each in found if each != "by_horizon"):
            values = [judgement["predictors"][name][measure] for judgement in judgements]
            entry = {"mean": statistics.fmean(values)}
            if len(values) > 1:
                entry["half_interval"] = interval(values)[1] - entry["mean"]
                storms = [judgement["predictors"].get("STORM", {}).get(measure) for judgement in judgements]
                if name != "STORM" and None not in storms:
                    entry["above_storm"] = interval([a - b for a, b in zip(values, storms, strict=True)])
            summary.setdefault(name, {})[measure] = entry
    return summary


def draw(summary: dict[str, dict[str, dict[str, Any]]], data: str) -> Figure:
    """Measures against the time that predicting took, with their intervals."""
    panels = PANELS | ({"consistent": "share of consistent frames"} if data == "twins" else {})
    figure = Figure(figsize=(4 * len(panels), 3.6), layout="constrained")
    for axes, (measure, title) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for number, (name, found) in enumerate(summary.items()):
            if measure in found:
                entry = found[measure]
                seconds, width = found["seconds"]["mean"], entry.get("half_interval", 0.0)
                axes.errorbar(
                    seconds, entry["mean"], width, fmt="o", label=name, color=f"C{number}", capsize=2
                )
        axes.set(title=title, xlabel=f"seconds for {WINDOWS} windows")
    figure.axes[0].legend(fontsize="x-small")
    return figure


def compare(data: str, options: argparse.Namespace, arguments: list[str]) -> None:
    """Train and judge models of a data set; write the results after each seed."""
    record_clips(data)
    runs, judgements, out = [], [], options.out
    for seed in options.seeds:
        with ThreadPoolExecutor(options.at_a_time) as pool:
            runs += pool.map(lambda model, seed=seed: train(data, model, seed, options.steps), options.models)
        result, found = judge(data, options.models, seed)
        judgements.append(result)
        summary = summarise(judgements)
        content = {"runs_at_a_time": options.at_a_time, "data": data, "confidence": CONFIDENCE}
        content |= {"summary": summary, "runs": runs, "judgements": judgements}
        write_record(out / f"{data}.json", "video", arguments, content)
        save(draw(summary, data), out / f"{data}.png")
        if seed == options.seeds[0]:
            named = replace(found, shown=dict(zip(result["predictors"], found.shown.values(), strict=True)))
            save(strip(named, result["context"], STRIPS), out / f"{data}_strip.png")
        for name, measures in result["predictors"].items():
            values = {key: round(value, 4) for key, value in measures.items() if key != "by_horizon"}
            print(f"{data} seed {seed}, {name}: {values}", flush=True)


def main(arguments: list[str]) -> None:
    """Compare on each data set."""
    parser = experiment_parser("video", __doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default 0 1 2")
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA), help="default: all")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="default: all")
    parser.add_argument("--steps", type=int, default=3000, help="updates of each run (default 3000)")
    add_at_a_time(parser)
    options = parser.parse_args(arguments)
    read_value("JointTrainAgent.SampleMaxSteps", options.steps, "--steps: ")
    for name in ("seeds", "models"):  # each once, or intervals would be too narrow
        setattr(options, name, list(dict.fromkeys(getattr(options, name))))
    torch.set_num_threads(1)
    for data in options.data:
        compare(data, options, arguments)


if __name__ == "__main__":
    run_cli(main)
