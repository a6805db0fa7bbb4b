"""Replay memory of environment steps."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from configuration.spaces import Spaces
from sub_models.batch import Batch
from utils import UserError

FIELDS = Batch._fields


class ReplayBuffer:
    """Ring buffer of the latest steps of N environments, on any device.

    A row holds one step of each environment: (o_t, a_t, r_t, d_t). Rows are numbered from 0
    as they are appended; row i lies at i modulo the capacity.

    Args:
        capacity: rows, that is steps per environment.
        num_envs: N. spaces: what is observed and done.
        device: where the arrays live.
    """

    def __init__(self, capacity: int, num_envs: int, spaces: Spaces, device: torch.device) -> None:
        self.capacity = capacity
        self.num_envs = num_envs
        self.device = device
        self.count = 0
        forms = {
            "observation": (spaces.observation.shape, spaces.observation.dtype),
            "action": (spaces.action.shape, spaces.action.dtype),
            "reward": ((), "float32"),
            "termination": ((), "float32"),
        }
        self._storage = {
            name: torch.zeros((capacity, num_envs, *shape), dtype=getattr(torch, dtype), device=device)
            for name, (shape, dtype) in forms.items()
        }

    @property
    def oldest(self) -> int:
        """Number of the oldest row still held."""
        return max(0, self.count - self.capacity)

    @property
    def rows(self) -> int:
        """Rows held: steps per environment."""
        return self.count - self.oldest

    def __len__(self) -> int:
        """Steps held, all environments together."""
        return self.rows * self.num_envs

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, filled or not."""
        return sum(values.nbytes for values in self._storage.values())

    def append(
        self,
        observation: Tensor | np.ndarray,
        action: Tensor | np.ndarray,
        reward: Tensor | np.ndarray,
        termination: Tensor | np.ndarray,
    ) -> None:
        """Append one row, overwriting the oldest when full.

        Args:
            observation: (N, *shape), what `action` was chosen on. action: (N, ...), as executed.
            reward, termination: float (N,). All on any device.
        """
        row = self.count % self.capacity
        values = map(torch.as_tensor, (observation, action, reward, termination))
        for name, value in zip(FIELDS, values, strict=True):
            assert value.shape == self._storage[name].shape[1:], f"{name}: {tuple(value.shape)}"
            self._storage[name][row].copy_(value, non_blocking=True)
        self.count += 1

    def recent_reward(self, rows: int) -> float:
        """Mean reward per step of the latest rows, fewer if fewer are held; waits for the device."""
        assert rows > 0 and self.rows, "no reward has been seen"
        latest = torch.arange(max(self.oldest, self.count - rows), self.count, device=self.device)
        return float(self._storage["reward"].index_select(0, latest % self.capacity).mean())

    def sample(self, batch_size: int, length: int, generator: torch.Generator) -> Batch:
        """Uniformly drawn environments and contiguous windows.

        A window may cross the end of an episode, never the write pointer: it does not join the
        newest step to the oldest.

        Args:
            batch_size: B. length: L, at most `rows`.
            generator: on the buffer's device.
        """
        starts = self.rows - length + 1
        assert starts > 0, f"{self.rows} rows hold no window of {length}"
        options = {"generator": generator, "device": self.device}
        environment = torch.randint(self.num_envs, (batch_size,), **options)
        first = torch.randint(starts, (batch_size,), **options) + self.oldest
        rows = (first.unsqueeze(1) + torch.arange(length, device=self.device)) % self.capacity
        flat = (rows * self.num_envs + environment.unsqueeze(1)).flatten()
        fields = (self._storage[name].flatten(0, 1) for name in FIELDS)
        return Batch(*(field.index_select(0, flat).unflatten(0, rows.shape) for field in fields))

    def export_rows(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Rows [start, stop) as host arrays (stop − start, N, ...), to be saved."""
        assert self.oldest <= start <= stop <= self.count
        index = torch.arange(start, stop, device=self.device) % self.capacity
        return {name: values.index_select(0, index).cpu().numpy() for name, values in self._storage.items()}

    def import_rows(self, start: int, rows: dict[str, np.ndarray]) -> None:
        """Put exported rows back under their numbers, of which `start` is the first.

        Raises:
            UserError: an array is missing or of another shape or dtype.
        """
        for name, values in self._storage.items():
            array = torch.from_numpy(rows[name]) if name in rows else torch.empty(0)
            if array.dtype != values.dtype or array.shape[1:] != values.shape[1:]:
                raise UserError(
                    f"replay rows: {name} is {array.dtype} {tuple(array.shape[1:])}, "
                    f"expected {values.dtype} {tuple(values.shape[1:])}"
                )
            index = torch.arange(start, start + len(array), device=self.device) % self.capacity
            values[index] = array.to(self.device)
        self.count = max(self.count, start + len(array))
