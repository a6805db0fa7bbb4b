"""Trains two small presets on a game over several seeds, and compares them with random play.

    python experiments/quick_start.py [--game Seaquest] [--seeds 0 1 2] [--out DIR]
    python experiments/quick_start.py --game Catch --seeds 0 1 2 3 4 --enough 0.9 --episodes 200

Runs are those of ./train.sh <game> <seed> <preset>, in outputs/ of the present folder, two at a
time on one thread each; a run that is there already is continued, or only evaluated. Writes
<out>/<game>.json and <out>/<game>.png: the mean return of the evaluation episodes of each checkpoint
and of random play, with 95 % intervals (Student's t), and the returns of the training episodes; and
<out>/<game>_health.png: what to look at while training, of the first seed.
"""

from __future__ import annotations

import argparse
import functools
import math
import statistics
import time
from pathlib import Path
from typing import Any

from scipy import stats

from configuration.loading import load_config
from evaluation.episodes import evaluate as play
from evaluation.episodes import evaluation_environment
from evaluation.policies import RandomPlay
from experiments.figures import HEALTH, draw, draw_health
from experiments.training import (
    ROOT,
    evaluate,
    experiment_parser,
    run_facts,
    saved_steps,
    side_by_side,
    start_training,
    training_curves,
    training_returns,
    write_record,
)
from utils import run_cli

CATCH = "Catch"  # Diagnostic/Catch-v0; all other games are Atari's
CONFIDENCE = 0.95
AVERAGED = 50  # training episodes in a row that must be good enough
SAVE_EVERY = 100  # steps between checkpoints where training may stop early
PAUSE = 1.0  # seconds between two looks at a run


def presets_of(game: str) -> tuple[str, str]:
    """Return the presets that a game is learned with."""
    size = "catch" if game == CATCH else "tiny"
    return f"STORM-{size}", f"GITSTORM-{size}"


def environment_of(game: str) -> str:
    """Return the Gymnasium id of a game."""
    return "Diagnostic/Catch-v0" if game == CATCH else f"ALE/{game}-v5"


def describe(returns: list[float]) -> dict[str, Any]:
    """Mean, 95 % interval of the mean, and the returns themselves."""
    error = stats.sem(returns)
    low, high = stats.t.interval(CONFIDENCE, len(returns) - 1, statistics.fmean(returns), error or 1e-12)
    return {
        "mean_return": statistics.fmean(returns),
        "interval": [float(low), float(high)],
        "returns": returns,
    }


def play_randomly(game: str, seed: int, episodes: int) -> dict[str, Any]:
    """Random play of as many episodes as each checkpoint is evaluated on."""
    preset = ROOT / "config_files" / f"{presets_of(game)[0]}.yaml"
    settings = {"config_path": preset, "env_name": environment_of(game)}
    config = load_config([f"BasicSettings.{key}={value}" for key, value in settings.items()])
    num_envs = config.Evaluation.NumEnvs
    environment = evaluation_environment(config, num_envs, seed)
    try:
        policy = RandomPlay(num_envs, environment.spaces.action, seed)
        return describe([episode.score for episode in play(policy, environment, episodes)])
    finally:
        environment.close()


def steps_needed(returns: list[tuple[int, float]], mean: float) -> int | None:
    """The first step at which the last 50 training episodes average `mean`; None if there is none."""
    for end in range(AVERAGED, len(returns) + 1):
        if sum(value for _, value in returns[end - AVERAGED : end]) >= mean * AVERAGED:
            return returns[end - 1][0]
    return None


def train(name: str, preset: str, settings: list[str], enough: float, folder: Path) -> None:
    """Train to the end, or until the last 50 training episodes average `enough`."""

    def is_enough() -> bool:
        return steps_needed(training_returns(name, folder), enough) is not None

    if is_enough():
        return
    process = start_training(name, preset, settings, folder)
    while process.poll() is None:
        time.sleep(PAUSE)
        if is_enough():
            process.terminate()  # it saves first
            process.wait()
    if process.returncode and not is_enough():
        raise RuntimeError(f"{name} ended with code {process.returncode}; see its log")


def run_name(game: str, preset: str, seed: int) -> str:
    """The name of a run, as ./train.sh gives it."""
    return f"{game}-{preset}-seed_{seed}"


def measure(preset: str, seed: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train and evaluate one run."""
    name = run_name(options.game, preset, seed)
    settings = [f"BasicSettings.env_name={environment_of(options.game)}", f"BasicSettings.Seed={seed}"]
    if options.enough < math.inf:
        settings.append(f"JointTrainAgent.SaveEverySteps={SAVE_EVERY}")
    train(name, preset, settings, options.enough, folder)
    saved = saved_steps(name, folder)
    evaluations = [
        {"step": step, **describe(evaluate(name, step, options.episodes, folder))}
        for step in (saved if options.enough == math.inf else saved[-1:])
    ]
    row = {"preset": preset, "seed": seed, **evaluations[-1], "evaluations": evaluations}
    row |= run_facts(name, folder) | {"training_returns": training_returns(name, folder)}
    low, high = row["interval"]
    print(
        f"{name}: {row['mean_return']:.4g} ({low:.4g} to {high:.4g}), {row['trained_steps']} steps in "
        f"{row['training_minutes']:.0f} minutes",
        flush=True,
    )
    return row


def main(arguments: list[str]) -> int:
    """Run all seeds of both presets; 1 if any is not above random play."""
    parser = experiment_parser("quick_start", __doc__, seeds=[0, 1, 2])
    parser.add_argument("--game", default="Seaquest", help=f"{CATCH}, or an Atari game of ALE/<game>-v5")
    parser.add_argument("--episodes", type=int, default=20, help="of each evaluation (default 20)")
    early = f"stop once {AVERAGED} training episodes average this much; evaluate the last checkpoint only"
    parser.add_argument("--enough", type=float, default=math.inf, help=early)
    options = parser.parse_args(arguments)
    random = play_randomly(options.game, options.seeds[0], options.episodes)
    low, high = random["interval"]
    print(f"random play: {random['mean_return']:.4g} ({low:.4g} to {high:.4g})", flush=True)
    measure_here = functools.partial(measure, options=options, folder=Path.cwd())
    path = options.out / f"{options.game}.json"
    presets = presets_of(options.game)
    rows = side_by_side(measure_here, presets, options.seeds)
    first = {preset: run_name(options.game, preset, options.seeds[0]) for preset in presets}
    record = {
        "game": options.game,
        "confidence": CONFIDENCE,
        "random": random,
        "runs": rows,
        "health": {preset: training_curves(name, HEALTH, Path.cwd()) for preset, name in first.items()},
    }
    write_record(path, "quick_start", arguments, record)
    draw(record, path.with_suffix(".png"))
    draw_health(record, path.with_name(f"{path.stem}_health.png"))
    above = sum(row["interval"][0] > high for row in rows)
    print(f"{above} of {len(rows)} runs are above random play; wrote {path} and {path.stem}.png")
    return int(above < len(rows))


if __name__ == "__main__":
    run_cli(main)
