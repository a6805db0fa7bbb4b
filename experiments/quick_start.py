"""Trains the tiny presets on a game over several seeds, and compares them with random play.

    python experiments/quick_start.py [--game Seaquest] [--seeds 0 1 2] [--out DIR]

Runs are those of ./train.sh <game> <seed> <preset>, in outputs/ of the present folder, two at a
time on one thread each; a run that is there already is continued, or only evaluated. Writes
<out>/<game>.json and <out>/<game>.png: the mean return of 20 evaluation episodes of each checkpoint
and of random play, with 95 % intervals (Student's t), and the returns of the training episodes; and
<out>/<game>_health.png: what to look at while training, of the first seed.
"""

from __future__ import annotations

import statistics
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

PRESETS = ("STORM-tiny", "GITSTORM-tiny")
EPISODES = 20
CONFIDENCE = 0.95


def describe(returns: list[float]) -> dict[str, Any]:
    """Mean, 95 % interval of the mean, and the returns themselves."""
    error = stats.sem(returns)
    low, high = stats.t.interval(CONFIDENCE, len(returns) - 1, statistics.fmean(returns), error or 1e-12)
    return {
        "mean_return": statistics.fmean(returns),
        "interval": [float(low), float(high)],
        "returns": returns,
    }


def play_randomly(game: str, seed: int) -> dict[str, Any]:
    """Random play of as many episodes as each run is evaluated on."""
    preset = ROOT / "config_files" / f"{PRESETS[0]}.yaml"
    config = load_config([f"BasicSettings.config_path={preset}", f"BasicSettings.env_name=ALE/{game}-v5"])
    num_envs = config.Evaluation.NumEnvs
    environment = evaluation_environment(config, num_envs, seed)
    try:
        policy = RandomPlay(num_envs, environment.spaces.action, seed)
        return describe([episode.score for episode in play(policy, environment, EPISODES)])
    finally:
        environment.close()


def run_name(game: str, preset: str, seed: int) -> str:
    """The name of a run, as ./train.sh gives it."""
    return f"{game}-{preset}-seed_{seed}"


def measure(preset: str, seed: int, game: str, folder: Path) -> dict[str, Any]:
    """Train and evaluate one run."""
    name = run_name(game, preset, seed)
    settings = [f"BasicSettings.env_name=ALE/{game}-v5", f"BasicSettings.Seed={seed}"]
    process = start_training(name, preset, settings, folder)
    if process.wait():
        raise RuntimeError(f"{name} ended with code {process.returncode}; see its log")
    evaluations = [
        {"step": step, **describe(evaluate(name, step, EPISODES, folder))}
        for step in saved_steps(name, folder)
    ]
    row = {"preset": preset, "seed": seed, **evaluations[-1], "evaluations": evaluations}
    row |= run_facts(name, folder) | {"training_returns": training_returns(name, folder)}
    low, high = row["interval"]
    print(
        f"{name}: {row['mean_return']:.0f} ({low:.0f} to {high:.0f}), {row['trained_steps']} steps in "
        f"{row['training_minutes']:.0f} minutes",
        flush=True,
    )
    return row


def main(arguments: list[str]) -> int:
    """Run all seeds of both presets; 1 if any is not above random play."""
    parser = experiment_parser("quick_start", __doc__, seeds=[0, 1, 2])
    parser.add_argument("--game", default="Seaquest", help="an Atari game of ALE/<game>-v5")
    options = parser.parse_args(arguments)
    random = play_randomly(options.game, options.seeds[0])
    low, high = random["interval"]
    print(f"random play: {random['mean_return']:.0f} ({low:.0f} to {high:.0f})", flush=True)

    def measure_here(preset: str, seed: int) -> dict[str, Any]:
        return measure(preset, seed, options.game, Path.cwd())

    path = options.out / f"{options.game}.json"
    rows = side_by_side(measure_here, PRESETS, options.seeds)
    first = {preset: run_name(options.game, preset, options.seeds[0]) for preset in PRESETS}
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
