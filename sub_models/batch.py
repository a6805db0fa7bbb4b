"""What travels between the parts: windows of real steps, and imagined rollouts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Windows of consecutive steps; reward and termination follow the action of their step."""

    observation: Tensor  # uint8 (B, L, H, W, C)
    action: Tensor  # int64 (B, L)
    reward: Tensor  # float32 (B, L)
    termination: Tensor  # float32 (B, L), 1 where the episode ended or a life was lost

    @staticmethod
    def concatenate(first: Batch, second: Batch) -> Batch:
        """Both batches, one after the other along B."""
        return Batch(
            *(torch.cat(pair) for pair in zip(vars(first).values(), vars(second).values(), strict=True))
        )

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`; the copy does not block the host."""
        return Batch(*(x.to(device, non_blocking=True) for x in vars(self).values()))


@dataclass(frozen=True)
class Rollout:
    """Imagined trajectories: s_0 … s_H, and what happened between them."""

    feature: Tensor  # (B, H+1, K·C + D): latent z_t beside hidden h_{t−1}
    action: Tensor  # int64 (B, H)
    reward: Tensor  # float32 (B, H)
    termination: Tensor  # float32 (B, H), 0 or 1
