"""Small environments that tell in minutes whether an agent, or a prior, learns.

Importing this module registers them with Gymnasium:

- `Diagnostic/Catch-v0`: bsuite's Catch (Osband et al. 2020, arXiv 1908.03568). A ball falls
  through a board of 10 rows and 5 columns; a paddle at the bottom moves left, stays or moves
  right; the ninth step ends the episode with reward +1 if the ball is caught, else -1.
- `Diagnostic/WindyCatch-v0`: the same, but at every step except the last the wind moves the ball
  sideways half of the time: whoever sees the present frame catches every ball, others 60 % at best.
- `Diagnostic/Digits-v0`: two handwritten digits that bounce (`environments.digits`).
- `Diagnostic/Reach-v0`: a hand is moved to a target in the plane; continuous actions, seen as a
  vector or, drawn, as a picture. With `steps=1` a bandit: the action itself is where to point.
- `Diagnostic/Twins-v0`: every frame is one of several equally likely pictures, drawn anew at
  each step whatever the action. A picture is a grid of parts that all show the same class, so
  a model that draws the parts independently is found out: its parts disagree
  (`parts_of`, `is_consistent`).
"""

from __future__ import annotations

import colorsys
import functools
from typing import Any

import gymnasium
import numpy as np
from einops import reduce
from gymnasium import spaces

CATCH_ROWS, CATCH_COLUMNS = 10, 5
BACKGROUND, BALL, PADDLE = (24, 24, 48), (255, 208, 64), (64, 176, 255)
GRID = 4  # a picture of Twins has 4 x 4 parts
GLYPH = 4  # and a part's pattern is a glyph of 4 x 4 cells, one for each of 16 classes
NUM_PICTURES = GLYPH * GLYPH
METADATA = {"render_modes": ["rgb_array"], "render_fps": 15}
DISC = 0.25  # radius of Reach's hand and target where the plane is 2 wide


class Catch(gymnasium.Env):
    """Catch the falling ball. Actions: 0 left, 1 stay, 2 right.

    Args:
        image_size: side of the square picture in pixels, at least 10.
        wind: probability that the ball moves by a column as it falls by a row, but into the last.
        render_mode: None or "rgb_array".
    """

    metadata = METADATA
    action_space = spaces.Discrete(3)

    def __init__(self, image_size: int = 64, wind: float = 0.0, render_mode: str | None = None) -> None:
        if image_size < CATCH_ROWS:
            raise ValueError(f"image_size must be at least {CATCH_ROWS}, found {image_size}")
        self.render_mode, self.wind = render_mode, wind
        self.observation_space = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self._row_edges = np.arange(CATCH_ROWS + 1) * image_size // CATCH_ROWS
        self._column_edges = np.arange(CATCH_COLUMNS + 1) * image_size // CATCH_COLUMNS

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """A ball at the top of a random column, the paddle in the middle."""
        super().reset(seed=seed)
        self.ball_row = 0
        self.ball_column = int(self.np_random.integers(CATCH_COLUMNS))
        self.paddle_column = CATCH_COLUMNS // 2
        return self.render(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move the paddle, let the ball fall by one row."""
        self.paddle_column = min(max(self.paddle_column + int(action) - 1, 0), CATCH_COLUMNS - 1)
        self.ball_row += 1
        landed = self.ball_row == CATCH_ROWS - 1
        if self.wind and not landed and self.np_random.random() < self.wind:
            column = self.ball_column + self.np_random.choice([-1, 1])
            self.ball_column = int(np.clip(column, 0, CATCH_COLUMNS - 1))
        reward = (1.0 if self.ball_column == self.paddle_column else -1.0) if landed else 0.0
        return self.render(), reward, landed, False, {}

    def render(self) -> np.ndarray:
        """Return the board, uint8 (S, S, 3)."""
        picture = np.full(self.observation_space.shape, BACKGROUND, np.uint8)
        self._cell(picture, CATCH_ROWS - 1, self.paddle_column)[:] = PADDLE
        self._cell(picture, self.ball_row, self.ball_column)[:] = BALL
        return picture

    def get_action_meanings(self) -> list[str]:
        """Return the names of the actions, as Atari games call theirs."""
        return ["LEFT", "NOOP", "RIGHT"]

    def _cell(self, picture: np.ndarray, row: int, column: int) -> np.ndarray:
        rows, columns = self._row_edges, self._column_edges
        return picture[rows[row] : rows[row + 1], columns[column] : columns[column + 1]]


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


class Twins(gymnasium.Env):
    """Each frame one of 16 equally likely pictures; the two actions do nothing.

    The reward is 0, and an episode is truncated after `episode_length` steps.

    Args:
        image_size: side of the square picture in pixels, a multiple of 16.
        episode_length: in steps. render_mode: None or "rgb_array".
    """

    metadata = METADATA
    action_space = spaces.Discrete(2)

    def __init__(
        self, image_size: int = 64, episode_length: int = 64, render_mode: str | None = None
    ) -> None:
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self._pictures = twins_pictures(image_size)
        self.episode_length = episode_length

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode with a random picture."""
        super().reset(seed=seed)
        self.elapsed = 0
        return self._draw()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Draw the next picture, independent of everything before."""
        self.elapsed += 1
        observation, info = self._draw()
        return observation, 0.0, False, self.elapsed >= self.episode_length, info

    def render(self) -> np.ndarray:
        """Return the present picture, uint8 (S, S, 3)."""
        return self._pictures[self.picture].copy()

    def _draw(self) -> tuple[np.ndarray, dict[str, Any]]:
        self.picture = int(self.np_random.integers(len(self._pictures)))
        return self.render(), {"picture": self.picture}


@functools.lru_cache(maxsize=8)
def twins_pictures(image_size: int = 64) -> np.ndarray:
    """Return all pictures of Twins, uint8 (16, S, S, 3), read-only.

    A class has a colour of its own and, as the pattern of each part, a row of the 16 x 16
    Hadamard matrix: rows are orthogonal, so that no two classes are alike even without colour.

    Raises:
        ValueError: a size that does not fit.
    """
    if image_size < 1 or image_size % (GLYPH * GRID):
        raise ValueError(f"image_size must be a multiple of {GLYPH * GRID}, found {image_size}")
    hadamard = functools.reduce(np.kron, [np.array([[1, 1], [1, -1]])] * 4)
    pixels = image_size // (GLYPH * GRID)
    glyphs = hadamard.reshape(NUM_PICTURES, GLYPH, GLYPH).repeat(pixels, 1).repeat(pixels, 2)
    hues = np.arange(NUM_PICTURES) / NUM_PICTURES
    bright = np.array([colorsys.hsv_to_rgb(hue, 0.8, 1.0) for hue in hues])[:, None, None]
    part = np.where(glyphs[..., None] > 0, bright, 0.25 * bright)
    pictures = np.tile(np.rint(255 * part).astype(np.uint8), (1, GRID, GRID, 1))
    pictures.setflags(write=False)
    return pictures


def parts_of(frames: np.ndarray) -> np.ndarray:
    """Return the class that each part of each frame shows, by its nearest pattern.

    Args:
        frames: (..., S, S, 3) in [0, 255], integers or floats.

    Returns:
        int64 (..., 4, 4), -1 where a part (a blend, a blur) is further from every pattern than half of
        the smallest distance between two.
    """
    pictures = twins_pictures(frames.shape[-2]).astype(np.float32)

    def part_distance(difference: np.ndarray) -> np.ndarray:  # (..., S, S, 3) → (..., 4, 4)
        pattern = "... (row height) (column width) colour -> ... row column"
        return np.sqrt(reduce(np.square(difference), pattern, "mean", row=GRID, column=GRID))

    frames = np.asarray(frames, dtype=np.float32)
    distance = np.stack([part_distance(frames - picture) for picture in pictures], axis=-1)
    pairs = [(a, b) for a in range(NUM_PICTURES) for b in range(a)]
    apart = min(part_distance(pictures[a] - pictures[b]).min() for a, b in pairs)
    return np.where(distance.min(-1) < apart / 2, distance.argmin(-1), -1)


def is_consistent(frames: np.ndarray) -> np.ndarray:
    """Return whether all parts of a frame (..., S, S, 3) show one and the same class, bool (...)."""
    parts = parts_of(frames).reshape(*frames.shape[:-3], GRID * GRID)
    return (parts[..., 0] >= 0) & (parts == parts[..., :1]).all(-1)


gymnasium.register("Diagnostic/Catch-v0", entry_point="environments.diagnostic:Catch")
gymnasium.register(
    "Diagnostic/WindyCatch-v0", entry_point="environments.diagnostic:Catch", kwargs={"wind": 0.5}
)
gymnasium.register("Diagnostic/Digits-v0", entry_point="environments.digits:Digits")
gymnasium.register("Diagnostic/Reach-v0", entry_point="environments.diagnostic:Reach")
gymnasium.register("Diagnostic/Twins-v0", entry_point="environments.diagnostic:Twins")
