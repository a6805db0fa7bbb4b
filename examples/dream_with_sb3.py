"""Trains Stable-Baselines3's PPO in the dream of a shipped agent, and scores it in the real game.

    pip install stable-baselines3
    python examples/dream_with_sb3.py                # Catch; about a minute on one core

PPO never sees the game: all its steps are imagined by the world model.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # not needed after pip install -e .

import gymnasium
import torch

import environments.diagnostic  # noqa: F401  (registers Catch)
from evaluation import DreamEnvironment

try:
    from stable_baselines3 import PPO
    from stable_baselines3.common.evaluation import evaluate_policy
except ModuleNotFoundError:
    print("error: stable_baselines3 is missing: pip install stable-baselines3", file=sys.stderr)
    sys.exit(2)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=16_384, help="imagined steps to train for")
parser.add_argument("--episodes", type=int, default=100, help="real episodes to score with")
options = parser.parse_args()

torch.set_num_threads(1)
dream = DreamEnvironment.load("STORM-catch", horizon=16, device="cpu")
real = gymnasium.make("Diagnostic/Catch-v0", render_mode="rgb_array")
agent = PPO(
    "CnnPolicy", dream, n_steps=512, batch_size=64, n_epochs=4, learning_rate=1e-3, ent_coef=0.01, seed=0
)


def score(when: str) -> None:
    """Print the mean return of real episodes."""
    mean, std = evaluate_policy(agent, real, options.episodes, deterministic=False, warn=False)
    print(f"{when}: mean return {mean:.2f} over {options.episodes} real episodes (std {std:.2f})", flush=True)


score("untrained")
agent.learn(options.steps)
score(f"after {options.steps} imagined steps")
