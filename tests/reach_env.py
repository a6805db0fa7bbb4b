"""`reach_env:Reach-v0`: a hand is moved to a target in the plane; a bandit with `steps=1`.

Continuous actions, seen as a vector or, drawn, as a picture; no PyTorch here.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from environments.diagnostic import BACKGROUND, BALL, METADATA, PADDLE

DISC = 0.25  # radius of hand and target where the plane is 2 wide


class Reach(gymnasium.Env):
    """Move a hand to a target. The reward of a step is 1 less the distance that is left, at most 1.

    The plane is [-1, 1]^2, the hand begins in its middle, and an action moves it along both axes
    by up to `min(1, 4 / steps)`. Observed are hand and target, float32 (4,). The last step is a
    truncation, but with `steps=1` a termination.

    Args:
        steps: of an episode. image_size: side of the square picture in pixels.
        render_mode: None or "rgb_array".
    """

    metadata = METADATA
    observation_space = spaces.Box(-1, 1, (4,))
    action_space = spaces.Box(-1, 1, (2,))

    def __init__(self, steps: int = 16, image_size: int = 64, render_mode: str | None = None) -> None:
        self.image_size, self.render_mode = image_size, render_mode
        self.steps, self.reach = steps, min(1.0, 4 / steps)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """A target anywhere, the hand in the middle."""
        super().reset(seed=seed)
        self.elapsed, self.hand, self.target = 0, np.zeros(2), self.np_random.uniform(-1, 1, 2)
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move the hand; what would leave the plane stays at its edge."""
        self.elapsed += 1
        self.hand = np.clip(self.hand + self.reach * np.asarray(action, np.float64), -1, 1)
        reward, ended = 1 - float(np.linalg.norm(self.target - self.hand)), self.elapsed == self.steps
        return self._observe(), reward, ended and self.steps == 1, ended and self.steps > 1, {}

    def _observe(self) -> np.ndarray:
        return np.concatenate([self.hand, self.target]).astype(np.float32)

    def render(self) -> np.ndarray:
        """Return hand and target as discs with soft edges, uint8 (S, S, 3)."""
        centres = (np.arange(self.image_size) + 0.5) * 2 / self.image_size - 1
        picture = np.full((self.image_size, self.image_size, 3), BACKGROUND, np.float64)
        for (x, y), colour in ((self.target, BALL), (self.hand, PADDLE)):
            distance = np.hypot(centres - x, centres[:, None] - y)
            share = np.clip((DISC - distance) * self.image_size / 2 + 0.5, 0, 1)[..., None]
            picture += share * (np.array(colour) - picture)
        return np.rint(picture).astype(np.uint8)


gymnasium.register("Reach-v0", entry_point=Reach)
