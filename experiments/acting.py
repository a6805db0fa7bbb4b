"""Acts on the posterior of the present frame, or blindly on a prior sample: which returns more?

A third side sees, and updates only once a step is stored, in the original's order, not while the
emulator makes it. Each agent is trained and evaluated in its side's way; what it has learned is then
played both ways, so that a handicap at play is told from one in learning.

    python -m experiments.acting                     # Catch in the wind, Seaquest; eight seeds a side
    python -m experiments.acting --tasks WindyCatch  # the diagnostic alone
    python -m experiments.acting --tasks Freeway --seeds 0 1 2 3 4 5 6 7 8 9

The sides differ in JointTrainAgent.ActBlindly or JointTrainAgent.UpdateAfterStoring alone. Runs go on two
at a time, on one thread each, in the current folder; typed again the command continues them. Every finished
run is recorded at once, in <out>/<task>.json, with the comparison of all that are there: each side's mean
over seeds, and by how much the first side, the default, is above it, with a 95 % interval (Welch's t). Eight
seeds a side show a difference of 1.5 standard deviations over seeds four times in five; a smaller one may be
there all the same.
"""

from __future__ import annotations

import statistics
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from environments.single import environment_id
from evaluation import load_policy
from evaluation.episodes import evaluate
from experiments.grid import Suite, run_grid
from reporting.statistics import sum_of_means
from run_files.directory import RunDirectory
from utils import run_cli

SEEING = "seeing"
SIDES = {
    SEEING: [],
    "blind": ["JointTrainAgent.ActBlindly=True"],
    "storing first": ["JointTrainAgent.UpdateAfterStoring=True"],
}
PLAYED = {"evaluation_returns": "as trained", "seeing_returns": "seeing", "blind_returns": "blindly"}
WINDY = "WindyCatch"  # Diagnostic/WindyCatch-v0; other tasks are Atari's games


def play_both_ways(name: str, episodes: int, folder: Path) -> dict[str, list[float]]:
    """Return the returns of a run's last checkpoint that sees the present frame, and that acts blindly."""
    found = {}
    for returns, blind in (("seeing_returns", False), ("blind_returns", True)):
        policy = load_policy(RunDirectory(name, folder).outputs, device="cpu", blind=blind)
        with closing(policy.make_environment()) as environment:
            played = evaluate(policy, environment, episodes, max_faults=policy.config.Environment.MaxFaults)
        found[returns] = [episode.score for episode in played]
    return found


def compare(task: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the sides score, by model and way of playing, and how far seeing is above the others."""
    models = sorted({run["model"].split(" ")[0] for run in runs})
    ways = {words: returns for returns, words in PLAYED.items() if all(returns in run for run in runs)}
    return {
        "sides": {
            model: {words: compare_sides(model, runs, returns) for words, returns in ways.items()}
            for model in models
        }
    }


def compare_sides(model: str, runs: list[dict[str, Any]], returns: str) -> dict[str, Any]:
    """Return the same of the runs of one model and one way of playing, by side."""
    facts: dict[str, Any] = {}
    for side in SIDES:
        of = [run for run in runs if run["model"] == f"{model} {side}"]
        scores = [statistics.fmean(run[returns]) for run in of]
        if not scores:
            continue
        facts[side] = {"mean": statistics.fmean(scores), "seeds": scores}
        seeing = facts[SEEING]["seeds"] if SEEING in facts else []
        if side != SEEING and min(len(seeing), len(scores)) > 1:
            above, *interval = sum_of_means([np.asarray(seeing), -np.asarray(scores)])
            facts[side] |= {"seeing_above": above, "interval": interval}
    return facts


SUITE = Suite(
    script="acting",
    tasks=(WINDY, "Seaquest"),
    models=lambda task: ("STORM-catch" if task == WINDY else "STORM-tiny",),
    seeds=lambda task: range(8),
    environment=lambda task: f"Diagnostic/{task}-v0" if task == WINDY else environment_id(task),
    window=1_000,
    episodes=50,
    variants=lambda model: SIDES,
    compare=compare,
    played=play_both_ways,
)


main = partial(run_grid, SUITE, __doc__)

if __name__ == "__main__":
    run_cli(main)
