"""Trains STORM and GIT-STORM on the DeepMind Control suite from states, beside published curves.

    python -m experiments.control                                # four tasks, two seeds, both models
    python -m experiments.control --tasks walker-walk --seeds 0 1 2 --models STORM-control
    python -m experiments.control --tasks CartPole-v1 --episodes 100 JointTrainAgent.SampleMaxSteps=30_000
    python -m experiments.control --out mixers --variant latents Models.WorldModel.StateMixer=latent_attention

Runs go on two at a time (--at-a-time), on one thread each, in the current folder; typed again the command
continues them. Every finished run is recorded at once, in <out>/<task>.json, and drawn beside DreamerV3,
DMPO and PPO at the same simulator steps (results/published_control.json).
"""

from __future__ import annotations

import re
from functools import partial

from environments.single import action_repeat
from experiments.grid import Suite, run_grid
from utils import REPOSITORY, run_cli


def environment_of(task: str) -> str:
    """Return Gymnasium's id; tasks without a version are those of dm_control."""
    return task if re.search(r"-v\d+$", task) else f"dm_control/{task}-v0"


SUITE = Suite(
    script="control",
    tasks=("cartpole-balance", "reacher-easy", "walker-stand", "cartpole-swingup"),
    models=lambda task: ("STORM-control", "GITSTORM-control"),
    seeds=lambda task: (0, 1),
    environment=environment_of,
    step="simulator_steps",
    repeat=lambda environment, config: action_repeat(environment, config.Environment),
    window=10_000,
    episodes=10,
    published=REPOSITORY / "results" / "published_control.json",
)


main = partial(run_grid, SUITE, __doc__)

if __name__ == "__main__":
    run_cli(main)
