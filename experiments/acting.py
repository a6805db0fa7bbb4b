"""Acts on the posterior of the present frame, or blindly on a prior sample: which learns more?

    python experiments/acting.py                     # Catch in the wind, Seaquest; eight seeds a side
    python experiments/acting.py --tasks WindyCatch  # the diagnostic alone
    python experiments/acting.py --tasks Freeway --seeds 0 1 2 3 4 5 6 7 8 9

The sides differ in JointTrainAgent.ActBlindly alone, when training and when evaluated. Runs go on two at
a time, on one thread each, in the current folder; typed again the command continues them. Every finished
run is recorded at once, in <out>/<task>.json, with the comparison of all that are there: each side's mean
over seeds, and the difference with its 95 % interval (Welch's t).
"""

from __future__ import annotations

import statistics
from typing import Any

from scipy import stats

from environments.single import environment_id
from experiments.grid import Suite, run_grid
from utils import run_cli

BLIND, SEEING = "blind", "seeing"
WINDY = "WindyCatch"  # Diagnostic/WindyCatch-v0; other tasks are Atari's games


def compare(task: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the sides of a task score, seed by seed, and their difference."""
    sides = {
        side: [statistics.fmean(run["evaluation_returns"]) for run in runs if run["model"].endswith(side)]
        for side in (SEEING, BLIND)
    }
    facts = {side: {"mean": statistics.fmean(of), "seeds": of} for side, of in sides.items() if of}
    if min(map(len, sides.values())) < 2:
        return facts
    test = stats.ttest_ind(sides[SEEING], sides[BLIND], equal_var=False)
    difference = facts[SEEING]["mean"] - facts[BLIND]["mean"]
    return facts | {"difference": difference, "interval": list(test.confidence_interval(0.95))}


SUITE = Suite(
    script="acting",
    tasks=(WINDY, "Seaquest"),
    models=lambda task: ("STORM-catch" if task == WINDY else "STORM-tiny",),
    seeds=lambda task: range(8),
    environment=lambda task: f"Diagnostic/{task}-v0" if task == WINDY else environment_id(task),
    window=1_000,
    episodes=50,
    variants=lambda model: {SEEING: [], BLIND: ["JointTrainAgent.ActBlindly=True"]},
    compare=compare,
)


def main(arguments: list[str]) -> int:
    """Run the grid that the command line asks for."""
    return run_grid(SUITE, __doc__, arguments)


if __name__ == "__main__":
    run_cli(main)
