"""Means of training metrics over many updates, kept on the device until they are read."""

from __future__ import annotations

import torch
from torch import Tensor

LATEST = ("bad_updates",)  # metrics of which the latest value is read, not the mean


class MeanMetrics:
    """Means by group and name over the updates since the last `read`, of the finite values.

    Args:
        device: where the metrics live.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._names: dict[str, list[str]] = {}
        self._values: dict[str, Tensor] = {}  # by group (3, names): latest, sum and count of the finite ones

    def add(self, group: str, metrics: dict[str, Tensor]) -> None:
        """Take in the metrics of one update, 0-d tensors; every call of a group has the same names."""
        latest = torch.stack([value.float() for value in metrics.values()])
        finite = latest.isfinite()
        if group not in self._names:
            self._names[group], self._values[group] = list(metrics), latest.new_zeros(3, len(metrics))
        values = self._values[group]
        values[0] = latest
        values[1] += latest.where(finite, 0)
        values[2] += finite

    def read(self) -> dict[str, float]:
        """Return the means by tag, "group/name", and begin new ones; waits for the device."""
        means = {}
        for group, names in self._names.items():
            latest, total, count = self._values[group]
            table = torch.stack([torch.where(count > 0, total / count, latest), latest]).tolist()
            for name, mean, last in zip(names, *table, strict=True):
                means[f"{group}/{name}"] = last if name in LATEST else mean
            self._values[group][1:] = 0
        return means

    def not_finite(self, group: str) -> list[str]:
        """Return the tags of a group whose latest value is not finite; waits for the device."""
        if group not in self._names:
            return []
        finite = self._values[group][0].isfinite().tolist()
        return [f"{group}/{name}" for name, good in zip(self._names[group], finite, strict=True) if not good]

    def state_dict(self) -> dict[str, object]:
        """Return everything."""
        return {
            group: {"names": list(names), "values": self._values[group].clone()}
            for group, names in self._names.items()
        }

    def load_state_dict(self, state: dict[str, dict[str, object]]) -> None:
        """Continue from `state_dict`."""
        self._names = {group: list(saved["names"]) for group, saved in state.items()}
        self._values = {group: saved["values"].to(self.device).clone() for group, saved in state.items()}
