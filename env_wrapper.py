"""N environments as one: they step while the device computes, and survive their own faults.

Every episode's last reward comes with the next episode's first picture (same-step autoreset),
so that nothing invented enters a replay buffer. Environment i is seeded once, with seed + i.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from compute.random_streams import derive_seed
from configuration.schema import EnvironmentConfig
from environments.single import SingleEnvironment
from environments.workers import Pool, PoolFailure
from utils import UserError

SEED_RANGE = 2**31 - 1


@dataclass(frozen=True)
class StepResult:
    """What one step of N environments brought."""

    observation: np.ndarray  # (N, *shape) as spaces says, what the next action is chosen on
    reward: np.ndarray  # float32 (N,), to learn from, as `rewards_to_learn` gives it
    raw_reward: np.ndarray  # float64 (N,), the environment's own
    termination: np.ndarray  # float32 (N,), 1 at the environment's end or a lost life, not at a truncation
    episode_end: np.ndarray  # bool (N,), terminated or truncated
    episode_return: np.ndarray  # float64 (N,), raw, of the episode that ended here; meaningless elsewhere
    episode_length: np.ndarray  # int64 (N,), in agent steps; likewise


class EnvironmentFault(Exception):
    """An environment died, hung, raised or returned nonsense; all N have begun new episodes on new seeds."""


def rewards_to_learn(reward: np.ndarray, settings: EnvironmentConfig) -> np.ndarray:
    """Return the rewards to learn from: raw ones, or their signs if ClipRewards, times RewardScale."""
    kept = np.sign(reward, dtype=np.float64) if settings.ClipRewards else reward
    return (kept * settings.RewardScale).astype(np.float32)


def raw_reward_of(learned: float, settings: EnvironmentConfig) -> float:
    """Return a raw reward that `learned`, predicted by a model, is learned from; clipped: -1, 0 or 1."""
    raw = learned / settings.RewardScale
    return float(np.sign(np.round(raw))) if settings.ClipRewards else raw


class VectorEnvironment:
    """N environments, in this process (N = 1 without a time limit) or in a worker process each.

    Args:
        name: Gymnasium id, `dm_control/<domain>-<task>-v0`, or `module:id` for one that a module registers.
        settings: of the environment.
        image_size: side S of pictures. num_envs: N. seed: of environment 0.
        release_quirks: restore two habits of the STORM release: every episode re-seeded with the
            same seed, and an episode's last reward counted into the next one's return.

    Raises:
        UserError: no such environment, or one that cannot be used or started.
    """

    def __init__(
        self,
        name: str,
        settings: EnvironmentConfig,
        image_size: int,
        num_envs: int,
        seed: int,
        release_quirks: bool = False,
    ) -> None:
        self.name, self.num_envs = name, num_envs
        self.seeds = [seed + index for index in range(num_envs)]
        self.fault_count = 0
        self._seed, self._settings, self._release_quirks = seed, settings, release_quirks
        self._build = functools.partial(SingleEnvironment, name, settings, image_size, release_quirks)
        self._resume_count = 0  # times that a state could not be restored exactly
        self._stepping = False
        self._pending_fault = ""  # happened while saving; reported by the next step
        self._return = np.zeros(num_envs)
        self._length = np.zeros(num_envs, np.int64)
        with self._refusal():
            self._pool = Pool(self._build, num_envs, settings.StepTimeout)
        self.spaces = self._pool.spaces

    @contextlib.contextmanager
    def _refusal(self) -> Iterator[None]:
        """Make a failure of the pool a UserError."""
        try:
            yield
        except PoolFailure as failure:
            raise UserError(self._named(failure)) from failure

    def _named(self, failure: PoolFailure) -> str:
        text = str(failure)
        return text if self.name in text else f"environment {self.name!r}: {text}"

    @property
    def _idle_pool(self) -> Pool:
        if self._stepping:
            raise RuntimeError("a step is under way: finish_step comes first")
        return self._pool

    @property
    def observation(self) -> np.ndarray:
        """The present observations, (N, *shape), a copy."""
        return self._pool.observation.copy()

    def reset(self) -> np.ndarray:
        """Seed every environment and return the first observations, (N, *shape).

        Called again it begins the same streams anew.

        Raises:
            UserError: an environment does not start.
        """
        with self._refusal():
            self._begin(range(self.num_envs))
        return self.observation

    def _begin(self, indices: range | list[int]) -> None:
        self._idle_pool.reset({index: self.seeds[index] for index in indices})
        self._return[indices], self._length[indices] = 0, 0

    def start_step(self, actions: np.ndarray) -> None:
        """Let the environments act; in this process (N = 1) the step itself runs in `finish_step`.

        Args:
            actions: integers (N,) in [0, size), or floats (N, size), which are clipped to [−1, 1].

        Raises:
            ValueError: other actions.
        """
        pool, actions = self._idle_pool, self._executed(np.asarray(actions))
        self._stepping = True
        if not self._pending_fault:
            pool.send(actions)

    def _executed(self, actions: np.ndarray) -> np.ndarray:
        """Return what the environments are told: int64 (N,), or float32 (N, size), which they clip."""
        spec = self.spaces.action
        shape, discrete = (self.num_envs, *spec.shape), spec.kind == "discrete"
        kinds, wanted = ("iu", f"integers in [0, {spec.size})") if discrete else ("f", "finite floats")
        fits = actions.shape == shape and actions.dtype.kind in kinds and np.isfinite(actions).all()
        if fits and (not discrete or (actions.min() >= 0 and actions.max() < spec.size)):
            return actions.astype(spec.dtype)
        raise ValueError(f"actions must be {wanted} {shape}, found {actions.dtype} {actions.tolist()}")

    def finish_step(self) -> StepResult:
        """Wait for the step that `start_step` began.

        Raises:
            EnvironmentFault: an environment failed; all have begun new episodes on new seeds.
            UserError: and could not be started again.
        """
        if not self._stepping:
            raise RuntimeError("finish_step needs a start_step before it")
        self._stepping = False
        message, self._pending_fault = self._pending_fault, ""
        if not message:
            try:
                return self._collect(self._pool.receive())
            except PoolFailure as failure:
                message = self._named(failure)
                self._restart(message)
        raise EnvironmentFault(message)

    def _collect(self, steps: list[tuple[float, bool, bool]]) -> StepResult:
        reward, termination, episode_end = map(np.array, zip(*steps, strict=True))
        total, length = self._return + reward, self._length + 1
        ended_with = self._return if self._release_quirks else total
        self._return = np.where(episode_end, reward if self._release_quirks else 0.0, total)
        self._length = np.where(episode_end, 0, length)
        return StepResult(
            observation=self.observation,
            reward=rewards_to_learn(reward, self._settings),
            raw_reward=reward,
            termination=termination.astype(np.float32),
            episode_end=episode_end,
            episode_return=ended_with,
            episode_length=length,
        )

    def _restart(self, message: str) -> None:
        self._pool.close(kill=True)
        self.fault_count += 1
        self._renew_seeds(range(self.num_envs))
        try:
            self._pool = Pool(self._build, self.num_envs, self._settings.StepTimeout)
            self._begin(range(self.num_envs))
        except PoolFailure as failure:
            raise UserError(f"{message}; starting again failed: {failure}") from failure

    def _renew_seeds(self, indices: range | list[int]) -> None:
        """New seeds that follow from the first one and from what has happened, nothing else."""
        for index in indices:
            purpose = ("environment", index, self.fault_count, self._resume_count)
            self.seeds[index] = derive_seed(self._seed, *purpose) % SEED_RANGE

    @property
    def running_return(self) -> np.ndarray:
        """Return of the episode that each environment is in, so far: raw, float64 (N,)."""
        return self._return

    def render(self) -> np.ndarray:
        """Return the present picture of environment 0 as it draws it, uint8 (height, width, 3).

        Raises:
            UserError: it cannot.
        """
        with self._refusal():
            return self._idle_pool.ask({0: ("render",)})[0].copy()

    def action_meanings(self) -> list[str]:
        """Return the environment's own names of its actions, [] if it has none."""
        with self._refusal():
            return self._idle_pool.ask({0: ("action_meanings",)})[0]

    # Saving and restoring.

    def state_dict(self) -> dict[str, Any]:
        """Everything the future depends on: plain values and tensors.

        Should an environment fail just now, all begin new episodes, and the next `finish_step`
        reports the fault.
        """
        ask_all = dict.fromkeys(range(self.num_envs), ("state_dict",))
        try:
            states = self._idle_pool.ask(ask_all)
        except PoolFailure as failure:
            self._pending_fault = self._named(failure)
            self._restart(self._pending_fault)
            with self._refusal():
                states = self._idle_pool.ask(ask_all)
        state = {
            "seeds": list(self.seeds),
            "fault_count": self.fault_count,
            "resume_count": self._resume_count,
            "pending_fault": self._pending_fault,
            "observation": self.observation,
            "episode_return": self._return,
            "episode_length": self._length,
            "environments": states,
        }
        return pytree.tree_map_only(np.ndarray, lambda array: torch.from_numpy(array.copy()), state)

    def load_state_dict(self, state: dict[str, Any]) -> list[str]:
        """Continue from `state_dict()`; `observation` then holds the present ones.

        Returns:
            A line for every reason why environments had to begin new episodes.

        Raises:
            UserError: an environment fails.
            KeyError, TypeError, ValueError: the state is malformed.
        """
        pool = self._idle_pool
        state = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.cpu().numpy(), state)
        self.seeds = [int(seed) for seed, _ in zip(state["seeds"], range(self.num_envs), strict=True)]
        self.fault_count, self._resume_count = int(state["fault_count"]), int(state["resume_count"])
        self._pending_fault = str(state["pending_fault"])
        self._return[:], self._length[:] = state["episode_return"], state["episode_length"]
        states = zip(range(self.num_envs), state["environments"], strict=True)
        calls = {index: ("load_state_dict", each) for index, each in states}
        with self._refusal():
            reasons = pool.ask(calls, patiently=True)
            pool.observation[:] = state["observation"]
            fresh = [index for index, reason in enumerate(reasons) if reason is not None]
            if fresh:
                self._resume_count += 1
                self._renew_seeds(fresh)
                self._begin(fresh)
        kinds = dict.fromkeys(reason for reason in reasons if reason is not None)
        return [f"environment {self.name!r} began new episodes: {reason}" for reason in kinds]

    def close(self) -> None:
        """End the environments and their processes."""
        self._pool.close()
