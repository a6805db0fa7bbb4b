"""The world model as a Gymnasium environment."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from evaluation.playing.dreaming import Dream, imagined_lengths
from evaluation.policies import EvaluationPolicy, load_policy
from evaluation.predictions import play_episodes
from sub_models.batch import Batch

CONTEXT_STEPS = 512  # of real play that episodes begin in


class DreamEnvironment(gymnasium.Env):
    """The world model of a run as an environment: what it imagines, nothing else.

        environment = DreamEnvironment.load("Boxing-STORM-seed_0")
        observation, info = environment.reset(seed=0)
        observation, reward, terminated, truncated, info = environment.step(environment.action_space.sample())

    An episode begins where the policy once was in the real environment: the first observation is
    the real one. It ends where the model thinks that it does, or is truncated after `horizon` steps.
    Rewards are as the model learned them, clipped and scaled if the run's settings say so.

    Args:
        policy: from `load_policy`. contexts: real play, (1, T).
        horizon: in steps; None is the horizon that the actor was trained with. A longer one than fits
            the sequence model is possible: its past is then shortened to a context, as often as needed.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012 (Gymnasium's way)
    render_mode = "rgb_array"

    def __init__(self, policy: EvaluationPolicy, contexts: Batch, horizon: int | None = None) -> None:
        self.context, trained = imagined_lengths(policy.config.JointTrainAgent)
        self.horizon = trained if horizon is None else horizon
        if self.horizon < 1 or contexts.reward.shape[1] <= self.context:
            raise ValueError(f"horizon {self.horizon} or {contexts.reward.shape[1]} steps: too few")
        self.policy, self._contexts = policy, contexts
        seen, done = policy.world_model.spaces.observation, policy.world_model.spaces.action
        bounds = (0, 255, seen.shape, np.uint8) if seen.kind == "image" else (-np.inf, np.inf, seen.shape)
        self.observation_space = spaces.Box(*bounds)
        self.action_space = (
            spaces.Discrete(done.size) if done.kind == "discrete" else spaces.Box(-1, 1, done.shape)
        )
        self._dream = Dream.of(policy, self._uniform)
        self._observation = np.zeros(seen.shape, seen.dtype)
        self._elapsed = self.horizon

    @classmethod
    def load(
        cls,
        source: str | Path,
        horizon: int | None = None,
        checkpoint: str | int = "last",
        device: str = "auto",
        context_steps: int = CONTEXT_STEPS,
    ) -> DreamEnvironment:
        """Return the dream of a run, after letting its policy play the real environment for a while.

        Args:
            source, checkpoint, device: as of `load_policy`. horizon: of an episode.
            context_steps: of real play, at least; whole episodes.

        Raises:
            UserError: no such run or checkpoint, or one that cannot be used.
        """
        policy = load_policy(source, checkpoint, device=device)
        with contextlib.closing(policy.make_environment()) as real:
            contexts, _ = play_episodes(policy, real, context_steps, policy.config.Environment.MaxFaults)
        return cls(policy, contexts.to(policy.streams.device), horizon)

    def _uniform(self, *shape: int) -> Tensor:
        return torch.from_numpy(self.np_random.random(shape, np.float32)).to(self.policy.streams.device)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin in a random real situation; return its observation."""
        super().reset(seed=seed)
        present = int(self.np_random.integers(self.context, self._contexts.reward.shape[1]))
        past = slice(present - self.context, present)
        seen = self._contexts.observation[0, past.start : present + 1]
        self._dream.begin(seen, self._contexts.action[0, past])
        self._elapsed, self._observation = 0, seen[-1].cpu().numpy()
        return self._observation.copy(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Return what the model imagines that an action brings; floats are clipped to [−1, 1]."""
        if self._elapsed >= self.horizon:
            raise RuntimeError("the episode is over: reset comes first")
        done = self.policy.world_model.spaces.action
        action = np.asarray(action, done.dtype)
        action = action if done.kind == "discrete" else np.clip(action, -1, 1)
        if not self.action_space.contains(action):
            raise ValueError(f"action {action!r} is not in {self.action_space}")
        reward, terminated = self._dream.step(torch.as_tensor(action).to(self.policy.streams.device))
        self._observation = self._dream.picture()
        self._elapsed = self.horizon if terminated else self._elapsed + 1
        truncated = not terminated and self._elapsed >= self.horizon
        return self._observation.copy(), reward, terminated, truncated, {}

    def render(self) -> np.ndarray | None:
        """Return the present picture, uint8 (S, S, 3); None of a model of vectors."""
        return self._observation.copy() if self._observation.dtype == np.uint8 else None
