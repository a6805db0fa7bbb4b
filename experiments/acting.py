"""Acts on the posterior of the present frame, or blindly on a prior sample: which returns more?

A third side sees, and updates only once a step is stored, in the original's order, not while the
emulator makes it. Each agent is trained and evaluated in its side's way; what it has learned is then
played both ways, so that a handicap at play is told from one in learning.

    python -m experiments.acting                     # Catch in the wind, Seaquest; eight seeds a side
    python -m experiments.acting --tasks WindyCatch  # the diagnostic alone
    python -m experiments.acting --tasks Freeway --seeds 0 1 2 3 4 5 6 7 8 9

The sides differ in JointTrainAgent.ActBlindly or JointTrainAgent.UpdateAfterStoring alone. Runs go on two
at a time (--at-a-time), on one thread each, in the current folder; typed again the command continues them.
Every finished run is recorded at once, in <out>/<task>.json, with the comparison of all that are there: each
side's mean over seeds, and by how much the first side, the default, is above it, with a 95 % interval
(Welch's t); and by how much the same agents score more when they see. Eight seeds a side show a difference of
1.5 standard deviations over seeds four times in five; a smaller one may be there all the same.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import numpy as np

from environments.single import environment_id
from evaluation.options import BLINDLY
from experiments.grid import Suite, run_grid
from reporting.statistics import sum_of_means
from utils import run_cli

SEEING, BLIND = "seeing", "blind"
SIDES = {
    SEEING: [],
    BLIND: [f"{BLINDLY}=True"],
    "storing first": ["JointTrainAgent.UpdateAfterStoring=True"],
}
AS_TRAINED = "as trained"
WAYS = (AS_TRAINED, SEEING, BLIND)  # of playing
WINDY = "WindyCatch"  # Diagnostic/WindyCatch-v0; other tasks are Atari's games


def compare(task: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the sides score, by model and way of playing, and how far seeing is above the others.

    Also how far it is above when the same agents play, whichever way each was trained.
    """
    models = sorted({run["model"].split(" ")[0] for run in runs})
    sides = {model: {way: compare_sides(model, runs, way) for way in WAYS} for model in models}
    return {"sides": sides, "at_play": {model: compare_play(model, runs) for model in models}}


def compare_play(model: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return by how much an agent of a model scores more seeing than blindly, with a 95 % interval."""
    agents = [run for run in runs if run["model"].startswith(f"{model} ")]
    gains = [
        statistics.fmean(returns_of(run, SEEING)) - statistics.fmean(returns_of(run, BLIND)) for run in agents
    ]
    above, *interval = sum_of_means([np.asarray(gains)])
    return {"agents": len(gains), "seeing_above": above, "interval": interval}


def returns_of(run: dict[str, Any], way: str) -> list[float]:
    """Return the returns of a run's last checkpoint, played in one of WAYS."""
    own_way = way == AS_TRAINED or (way == BLIND) == run["model"].endswith(f" {BLIND}")
    return run["evaluation_returns" if own_way else "other_way_returns"]


def compare_sides(model: str, runs: list[dict[str, Any]], way: str) -> dict[str, Any]:
    """Return the same of the runs of one model and one way of playing, by side."""
    facts: dict[str, Any] = {}
    for side in SIDES:
        of = [run for run in runs if run["model"] == f"{model} {side}"]
        scores = [statistics.fmean(returns_of(run, way)) for run in of]
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
    played_too=lambda run: f"{BLINDLY}={run.variant != BLIND}",
)


main = partial(run_grid, SUITE, __doc__)

if __name__ == "__main__":
    run_cli(main)
