"""Trains STORM-small and GITSTORM-small on Atari games for 100,000 steps, beside published curves.

One line for each game, and the same curve again:

    python -m experiments.atari_small --tasks Boxing                 # two seeds, both models
    python -m experiments.atari_small --tasks KungFuMaster
    python -m experiments.atari_small --tasks Krull
    python -m experiments.atari_small                                # all three
    python -m experiments.atari_small --tasks Pong --models GITSTORM-small --seeds 0 1 2
    python -m experiments.atari_small --tasks Boxing --models GITSTORM-small --variant joint \\
        Models.MaskGit.T_draft=4 Models.MaskGit.T_revise=4           # sampled 4/4/1
    python -m experiments.atari_small --tasks Pong --device cuda --at-a-time 8 --seeds 0 1 2 3

Runs go on two at a time (--at-a-time), on one thread each, in the current folder; typed again the command
continues them. Every finished run is recorded at once, in <out>/<game>.json: training returns, evaluations
of all checkpoints (every episode also in <game>.csv), settings, source, machine and cost; and drawn beside
DreamerV3 and PPO at the same steps of the agent (results/published_atari.json), random play and a person.
"""

from __future__ import annotations

from functools import partial

from environments.single import environment_id
from evaluation.scores import reference_scores
from experiments.grid import Suite, run_grid
from utils import REPOSITORY, run_cli


def levels(game: str) -> dict[str, float]:
    """Return what random play and a person score in a game, if that is known."""
    named = zip(("random play", "a person"), reference_scores(), strict=True)
    return {name: scores[game] for name, scores in named if game in scores}


SUITE = Suite(
    script="atari_small",
    tasks=("Boxing", "KungFuMaster", "Krull"),
    models=lambda game: ("STORM-small", "GITSTORM-small"),
    seeds=lambda game: (0, 1) if game == "Boxing" else (0,),
    environment=environment_id,
    window=10_000,
    episodes=20,
    every_checkpoint=True,
    published=REPOSITORY / "results" / "published_atari.json",
    levels=levels,
)


main = partial(run_grid, SUITE, __doc__)

if __name__ == "__main__":
    run_cli(main)
