"""Recorded play that is mixed into training, as the STORM paper tries it on Freeway."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from configuration.schema import EnvironmentConfig
from configuration.spaces import ActionSpec, Spaces
from env_wrapper import rewards_to_learn
from replay_buffer import ReplayBuffer
from run_files.array_files import read_arrays
from utils import UserError

KEYS = ("obs", "action", "reward", "done")


def load_demonstrations(
    path: Path, spaces: Spaces, shortest: int, device: torch.device, settings: EnvironmentConfig
) -> ReplayBuffer:
    """Return one trajectory of real play as the full replay buffer of one environment.

    Its termination is `done`: lost lives, which a trajectory may record beside it, do not end it.

    Args:
        path: of an .npz, or STORM's pickle, with arrays obs (T, *shape), on which action (T, ...) was
            chosen, reward (T,), the environment's own, and done (T,); it may be hostile.
        spaces: what is observed and done in the environment.
        shortest: fewest steps that can be used, the longest window that will be drawn.
        device: where the arrays will live.
        settings: the Environment section; what of rewards is learned from.

    Raises:
        UserError: names file and key, what was expected and what was found.
    """
    arrays = read_arrays(path, KEYS)
    _check_layout(path, arrays, spaces, shortest)
    _check_values(path, arrays, spaces.action)
    rows = {
        "observation": np.require(arrays["obs"], requirements=["C", "W"]),
        "action": arrays["action"].astype(spaces.action.dtype),
        "reward": rewards_to_learn(arrays["reward"], settings),
        "termination": arrays["done"].astype(np.float32),
    }
    demonstrations = ReplayBuffer(len(arrays["obs"]), 1, spaces, device)
    demonstrations.import_rows(0, {name: array[:, None] for name, array in rows.items()})
    return demonstrations


def _check_layout(path: Path, arrays: dict[str, np.ndarray], spaces: Spaces, shortest: int) -> None:
    """Check dtypes and shapes."""
    obs, spec = arrays["obs"], spaces.observation
    if obs.dtype != spec.dtype or obs.ndim == 0 or obs.shape[1:] != spec.shape:
        expected = ", ".join(map(str, spec.shape))
        raise UserError(f"{path}: 'obs' is {obs.dtype} {obs.shape}, expected {spec.dtype} (T, {expected})")
    steps = obs.shape[0]
    forms = {"action": ((steps, *spaces.action.shape), "iu" if spaces.action.kind == "discrete" else "iuf")}
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
    action, done = arrays["action"], arrays["done"]
    ranges = {"discrete": (0, actions.size - 1, "the environment's actions")}
    low, high, what = ranges.get(actions.kind, (-1, 1, "which the environment's bounds are mapped to"))
    if not (low <= action.min() and action.max() <= high):
        raise UserError(
            f"{path}: 'action' holds {action.min()} to {action.max()}, expected {low} to {high}, {what}"
        )
    for key in ("obs", "reward"):
        array = arrays[key]
        if array.dtype.kind == "f" and not (np.abs(array) <= np.finfo(np.float32).max).all():
            raise UserError(f"{path}: {key!r} holds numbers that are not finite")
    if not np.isin(done, (0, 1)).all():
        raise UserError(f"{path}: 'done' holds {done.min()} to {done.max()}, expected 0 and 1 only")
