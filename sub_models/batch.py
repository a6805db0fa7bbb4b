"""What travels between the parts: windows of real steps, and imagined rollouts."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Windows of consecutive steps; reward and termination follow the action of their step."""

    observation: Tensor  # uint8 (B, L, H, W, C) or float32 (B, L, n)
    action: Tensor  # int64 (B, L), or float32 (B, L, n) in [−1, 1]: what was executed
    reward: Tensor  # float32 (B, L)
    termination: Tensor  # float32 (B, L), 1 where the episode ended or a life was lost

    @staticmethod
    def concatenate(first: Batch, second: Batch) -> Batch:
        """Return both batches, one after the other along B."""
        return Batch(*map(torch.cat, zip(first, second, strict=True)))

    def to(self, device: torch.device) -> Batch:
        """Return the same batch on `device`."""
        return Batch(*(x.to(device) for x in self))


class Rollout(NamedTuple):
    """Imagined trajectories: s_0 … s_H, and what happened between them."""

    feature: Tensor  # (B, H+1, K·C + D): latent z_t beside hidden h_{t−1}
    action: Tensor  # int64 (B, H), or float32 (B, H, n): as drawn, before it is clipped to the box
    reward: Tensor  # float32 (B, H)
    termination: Tensor  # float32 (B, H), 0 or 1
