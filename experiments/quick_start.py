"""Trains two small presets on a game over several seeds, and compares them with random play.

    python -m experiments.quick_start [--tasks Seaquest] [--seeds 0 1 2] [--out DIR]
    python -m experiments.quick_start --tasks Catch --seeds 0 1 2 3 4 --episodes 200

Runs go on two at a time (--at-a-time), on one thread each, in the current folder; typed again the command
continues them. Every finished run is recorded at once in <out>/<game>.json, and drawn: the returns of
training episodes and of each checkpoint's evaluation with 95 % intervals (Student's t) beside random play,
and what to look at while training, of the first seed.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
from typing import Any

from configuration.loading import load_config
from environments.single import environment_id
from evaluation.episodes import evaluate, evaluation_environment
from evaluation.policies import RandomPlay
from experiments.grid import Suite, run_grid
from experiments.training import interval
from utils import run_cli

CATCH = "Catch"  # Diagnostic/Catch-v0; all other games are Atari's
EPISODES = 20


def presets_of(game: str) -> tuple[str, str]:
    """Return the presets that a game is learned with."""
    size = "catch" if game == CATCH else "tiny"
    return f"STORM-{size}", f"GITSTORM-{size}"


def environment_of(game: str) -> str:
    """Return the Gymnasium id of a game."""
    return "Diagnostic/Catch-v0" if game == CATCH else environment_id(game)


@functools.cache
def random_play(game: str) -> tuple[float, ...]:
    """Return what episodes of random play return."""
    settings = {"config_path": presets_of(game)[0], "env_name": environment_of(game)}
    config = load_config([f"BasicSettings.{key}={value}" for key, value in settings.items()])
    with contextlib.closing(evaluation_environment(config, config.Evaluation.NumEnvs, 0)) as environment:
        policy = RandomPlay(config.Evaluation.NumEnvs, environment.spaces.action, 0)
        return tuple(episode.score for episode in evaluate(policy, environment, EPISODES))


def compare(game: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return random play's returns, and how many runs are above it: their intervals do not meet."""
    random = random_play(game)
    above = sum(interval(run["evaluation_returns"])[0] > interval(random)[1] for run in runs)
    return {"random_returns": random, "runs_above_random": above}


SUITE = Suite(
    script="quick_start",
    tasks=("Seaquest",),
    models=presets_of,
    seeds=lambda game: range(3),
    environment=environment_of,
    window=1_000,
    episodes=EPISODES,
    every_checkpoint=True,
    levels=lambda game: {"random play": statistics.fmean(random_play(game))},
    compare=compare,
)


main = functools.partial(run_grid, SUITE, __doc__)

if __name__ == "__main__":
    run_cli(main)
