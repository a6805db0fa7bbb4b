"""Recorded play that is mixed into training, as the STORM paper tries it on Freeway."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from configuration.spaces import ActionSpec, Spaces
from replay_buffer import gather_windows
from run_files.array_files import read_arrays
from sub_models.batch import Batch
from utils import UserError

KEYS = ("obs", "action", "reward", "done")


class Demonstrations:
    """One trajectory of real play, sampled like a replay buffer of one environment.

    Its termination is `done`: lost lives, which a trajectory may record beside it, do not end it.

    Args:
        observation: uint8 (T, H, W, C); what `action` was chosen on. action: int64 (T,).
        reward: float32 (T,). done: float32 (T,), 0 or 1.
        device: where the arrays live.
    """

    def __init__(
        self,
        observation: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        device: torch.device,
    ) -> None:
        self.device = device
        arrays = Batch(*map(torch.from_numpy, (observation, action, reward, done)))
        self._storage = {name: array.to(device).unsqueeze(1) for name, array in arrays._asdict().items()}

    @staticmethod
    def load(
        path: Path,
        spaces: Spaces,
        shortest: int,
        device: torch.device,
        clip_rewards: bool,
    ) -> Demonstrations:
        """Read an .npz, or STORM's pickle, with arrays obs, action, reward and done.

        Args:
            path: of the file; it may be hostile.
            spaces: what is observed and done in the environment.
            shortest: fewest steps that can be used, the longest window that will be drawn.
            device: where the arrays will live.
            clip_rewards: keep only the sign of rewards, as an environment does with ClipRewards.

        Raises:
            UserError: names file and key, what was expected and what was found.
        """
        arrays = read_arrays(path, KEYS)
        _check_layout(path, arrays, spaces, shortest)
        _check_values(path, arrays, spaces.action)
        reward = arrays["reward"].astype(np.float32)
        return Demonstrations(
            np.require(arrays["obs"], requirements=["C", "W"]),
            arrays["action"].astype(spaces.action.dtype),
            np.sign(reward) if clip_rewards else reward,
            arrays["done"].astype(np.float32),
            device,
        )

    def __len__(self) -> int:
        """Steps of the trajectory."""
        return len(self._storage["action"])

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Batch:
        """Uniformly drawn contiguous windows (B, L).

        Args:
            batch_size: B. length: L, at most the trajectory's. generator: on the arrays' device.
        """
        starts = len(self) - length + 1
        assert starts > 0, f"{len(self)} steps hold no window of {length}"
        first = torch.randint(starts, (batch_size, 1), generator=generator, device=self.device)
        rows = first + torch.arange(length, device=self.device)
        return gather_windows(self._storage, rows, torch.zeros_like(first[:, 0]))


def _check_layout(path: Path, arrays: dict[str, np.ndarray], spaces: Spaces, shortest: int) -> None:
    """Check dtypes and shapes."""
    obs, spec = arrays["obs"], spaces.observation
    if obs.dtype != spec.dtype or obs.ndim == 0 or obs.shape[1:] != spec.shape:
        expected = ", ".join(map(str, spec.shape))
        raise UserError(f"{path}: 'obs' is {obs.dtype} {obs.shape}, expected {spec.dtype} (T, {expected})")
    steps = obs.shape[0]
    forms = {"action": ((steps, *spaces.action.shape), "iu" if spaces.action.kind == "discrete" else "f")}
    for key in ("action", "reward", "done"):
        array = arrays[key]
        shape, kinds = forms.get(key, ((steps,), "biuf"))
        if array.dtype.kind not in kinds or array.shape != shape:
            wanted = "integers" if kinds == "iu" else "numbers"
            raise UserError(f"{path}: {key!r} is {array.dtype} {array.shape}, expected {wanted} {shape}")
    if steps < shortest:
        raise UserError(
            f"{path}: has {steps} steps, expected at least {shortest}, the length of a training window"
        )


def _check_values(path: Path, arrays: dict[str, np.ndarray], actions: ActionSpec) -> None:
    action, reward, done = arrays["action"], arrays["reward"], arrays["done"]
    low, high = (0, actions.size - 1) if actions.kind == "discrete" else (-1, 1)
    if not (low <= action.min() and action.max() <= high):
        raise UserError(
            f"{path}: 'action' holds {action.min()} to {action.max()}, "
            f"expected {low} to {high}, the environment's actions"
        )
    if not (np.abs(reward.astype(np.float64)) <= np.finfo(np.float32).max).all():
        raise UserError(f"{path}: 'reward' holds numbers that are not finite")
    if not np.isin(done, (0, 1)).all():
        raise UserError(f"{path}: 'done' holds {done.min()} to {done.max()}, expected 0 and 1 only")
