"""Means of training metrics over many updates, kept on the device until they are read."""

from __future__ import annotations

import torch
from torch import Tensor

COUNTS = ("bad_updates",)  # metrics of which the latest value counts, not the mean


class MeanMetrics:
    """Means by group and name over the updates since the last `read`, of the finite values.

    Args:
        device: where the metrics live.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._names: dict[str, list[str]] = {}
        self._latest: dict[str, Tensor] = {}  # by group, one number per name
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    def add(self, group: str, metrics: dict[str, Tensor]) -> None:
        """Take in the metrics of one update, 0-d tensors; every call of a group has the same names."""
        latest = torch.stack([value.float() for value in metrics.values()])
        finite = latest.isfinite()
        if group not in self._names:
            self._names[group] = list(metrics)
            self._sums[group], self._counts[group] = torch.zeros_like(latest), torch.zeros_like(latest)
        self._latest[group] = latest
        self._sums[group] += latest.where(finite, 0)
        self._counts[group] += finite

    def read(self) -> dict[str, float]:
        """Return the means by tag, "group/name", and begin new ones; waits for the device."""
        means = {}
        for group, names in self._names.items():
            numbers = torch.where(
                self._counts[group] > 0, self._sums[group] / self._counts[group], self._latest[group]
            )
            table = torch.stack([numbers, self._latest[group]]).tolist()
            for name, mean, latest in zip(names, *table, strict=True):
                means[f"{group}/{name}"] = latest if name in COUNTS else mean
            self._sums[group].zero_()
            self._counts[group].zero_()
        return means

    def not_finite(self, group: str) -> list[str]:
        """Return the tags of a group whose latest value is not finite; waits for the device."""
        if group not in self._names:
            return []
        finite = self._latest[group].isfinite().tolist()
        return [f"{group}/{name}" for name, good in zip(self._names[group], finite, strict=True) if not good]

    def state_dict(self) -> dict[str, object]:
        """Return everything."""
        return {
            group: {
                "names": list(names),
                "values": torch.stack([self._latest[group], self._sums[group], self._counts[group]]),
            }
            for group, names in self._names.items()
        }

    def load_state_dict(self, state: dict[str, dict[str, object]]) -> None:
        """Continue from `state_dict`."""
        self._names = {group: list(saved["names"]) for group, saved in state.items()}
        for group, saved in state.items():
            latest, sums, counts = saved["values"].to(self.device).clone()
            self._latest[group], self._sums[group], self._counts[group] = latest, sums, counts
