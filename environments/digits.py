"""`Diagnostic/Digits-v0`: two handwritten digits that move about and bounce off the edges of the picture.

As stochastic Moving MNIST (Denton and Fergus 2018, arXiv 1802.07687), with the digits that scikit-learn
carries: where a digit bounces, its speed is drawn anew, so that there is something to be uncertain of.
"""

from __future__ import annotations

import functools
from typing import Any

import cv2
import gymnasium
import numpy as np
from gymnasium import spaces

from environments.diagnostic import METADATA

SHARE = 3 / 8  # of the picture's side that a digit's is
SPEEDS = (1 / 32, 1 / 16)  # least and largest, of the picture's side a step, along each axis
DIGITS = 2


class Digits(gymnasium.Env):
    """Two digits in a picture. There is one action, which does nothing; the reward is 0.

    Args:
        image_size: side of the square picture in pixels, at least 16.
        episode_length: steps after which an episode is truncated. render_mode: None or "rgb_array".
    """

    metadata = METADATA
    action_space = spaces.Discrete(1)

    def __init__(
        self, image_size: int = 64, episode_length: int = 64, render_mode: str | None = None
    ) -> None:
        if image_size < 16:
            raise ValueError(f"image_size must be at least 16, found {image_size}")
        self.render_mode, self.episode_length = render_mode, episode_length
        self.observation_space = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self._shapes = digit_shapes(round(SHARE * image_size))
        self._room = float(image_size - self._shapes.shape[1])  # of a digit's corner

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Two digits anywhere, on their way anywhere."""
        super().reset(seed=seed)
        self.elapsed = 0
        self.digits = self.np_random.integers(len(self._shapes), size=DIGITS)
        self.places = self.np_random.uniform(0, self._room, (DIGITS, 2))
        self.velocities = np.stack([self._draw_velocity() for _ in range(DIGITS)])
        return self.render(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move both digits; one that would leave the picture turns back, at a new speed along both axes."""
        self.elapsed += 1
        self.places += self.velocities
        for place, velocity in zip(self.places, self.velocities, strict=True):
            beyond = np.sign(place) * ((place < 0) | (place > self._room))
            if beyond.any():
                drawn = self._draw_velocity()
                velocity[:] = np.where(beyond == 0, drawn, -beyond * np.abs(drawn))
        np.clip(self.places, 0, self._room, out=self.places)
        return self.render(), 0.0, False, self.elapsed >= self.episode_length, {}

    def _draw_velocity(self) -> np.ndarray:
        size = self.observation_space.shape[0]
        return size * self.np_random.uniform(*SPEEDS, 2) * self.np_random.choice([-1, 1], 2)

    def render(self) -> np.ndarray:
        """Return the picture, uint8 (S, S, 3): the brighter digit where both are."""
        picture = np.zeros(self.observation_space.shape[:2], np.uint8)
        for digit, (row, column) in zip(self.digits, np.rint(self.places).astype(int), strict=True):
            shape = self._shapes[digit]
            part = picture[row : row + len(shape), column : column + len(shape)]
            np.maximum(part, shape, out=part)
        return np.repeat(picture[..., None], 3, axis=-1)


@functools.lru_cache(maxsize=8)
def digit_shapes(side: int) -> np.ndarray:
    """Return scikit-learn's 1,797 digits, uint8 (n, side, side), read-only.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the package scikit-learn is missing: pip install -r requirements-video.txt"
        ) from error
    images = load_digits().images.astype(np.float32)  # (n, 8, 8) from 0 to 16
    shapes = np.stack([cv2.resize(image, (side, side), interpolation=cv2.INTER_LINEAR) for image in images])
    shapes = np.rint(shapes * 255 / 16).astype(np.uint8)
    shapes.setflags(write=False)
    return shapes
