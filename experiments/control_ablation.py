"""What the state mixer and the prior change in continuous control, early in learning.

    python -m experiments.control_ablation
    python -m experiments.control_ablation --tasks Pendulum-v1 --seeds 2 3

The three mixers in STORM; STORM beside GIT-STORM whose latents are drawn at once (1/1/1) or jointly
(4/4/1). Runs go on two at a time (--at-a-time), on one thread each, in the current folder; typed again the
command continues them. Every finished run is recorded at once, in <out>/<task>.json, with each side's
returns.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

from experiments.control import environment_of
from experiments.grid import Suite, run_grid
from utils import run_cli

SHORT = "JointTrainAgent.SampleMaxSteps=5_000"  # where sides still differ
VARIANTS = {
    "STORM-control": {
        "": [SHORT],
        "concat_attention": [SHORT, "Models.WorldModel.StateMixer=concat_attention"],
        "latent_attention": [SHORT, "Models.WorldModel.StateMixer=latent_attention"],
    },
    "GITSTORM-control": {
        "": [SHORT],
        "joint": [SHORT, *(f"Models.MaskGit.{key}" for key in ("T_draft=4", "T_revise=4", "M=1"))],
    },
}


def compare(task: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what each side returned late in training and when evaluated, seed by seed."""
    sides: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        side = sides.setdefault(run["model"], {"training": [], "evaluated": [], "cpu_minutes": []})
        side["training"].append(run["final_training_return"])
        side["evaluated"].append(statistics.fmean(run["evaluation_returns"]))
        side["cpu_minutes"].append(run["training_cpu_minutes"])
    return {"sides": sides}


SUITE = Suite(
    script="control_ablation",
    tasks=("Pendulum-v1", "cartpole-balance"),
    models=lambda task: tuple(VARIANTS),
    seeds=lambda task: (0, 1),
    environment=environment_of,
    window=2_000,
    episodes=10,
    variants=lambda model: VARIANTS.get(model, {}),
    compare=compare,
)


main = partial(run_grid, SUITE, __doc__)

if __name__ == "__main__":
    run_cli(main)
