"""Two small environments that tell in minutes whether an agent, or a prior, learns.

Importing this module registers them with Gymnasium:

- `Diagnostic/Catch-v0`: bsuite's Catch (Osband et al. 2020, arXiv 1908.03568). A ball falls
  through a board of 10 rows and 5 columns; a paddle at the bottom moves left, stays or moves
  right; the ninth step ends the episode with reward +1 if the ball is caught, else -1.
- `Diagnostic/Twins-v0`: every frame is one of several equally likely pictures, drawn anew at
  each step whatever the action. A picture is a grid of parts that all show the same class, so
  a model that draws the parts independently is found out: its parts disagree
  (`parts_of`, `is_consistent`).

Both define `state_dict` and `load_state_dict`, which is all that an environment needs in order
to be resumed exactly.
"""

from __future__ import annotations

import colorsys
import functools
import json
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

CATCH_ROWS, CATCH_COLUMNS = 10, 5
BACKGROUND, BALL, PADDLE = (24, 24, 48), (255, 208, 64), (64, 176, 255)
GLYPH = 4  # a part's pattern is a glyph of 4 x 4 cells, one for each of up to 16 classes
MAX_PICTURES = GLYPH * GLYPH


class DiagnosticEnv(gymnasium.Env):
    """What both share: a square uint8 picture, and a state that can be saved and restored."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}  # noqa: RUF012 (Gymnasium's way)
    state_names: tuple[str, ...]  # integer attributes that, with the generator, are the whole state

    def __init__(self, image_size: int, num_actions: int, render_mode: str | None) -> None:
        self.image_size = image_size
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.action_space = spaces.Discrete(num_actions)

    def render(self) -> np.ndarray:
        """The present picture, uint8 (S, S, 3)."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """All that the future depends on: plain integers and the random generator as JSON text."""
        random = json.dumps(self.np_random.bit_generator.state)
        return {"random": random} | {name: int(getattr(self, name)) for name in self.state_names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`.

        Raises:
            KeyError, TypeError, ValueError: the state is malformed.
        """
        for name in self.state_names:
            if type(state[name]) is not int:
                raise TypeError(f"{name!r} must be an int, found {type(state[name]).__name__}")
            setattr(self, name, state[name])
        self.np_random.bit_generator.state = json.loads(state["random"])


class Catch(DiagnosticEnv):
    """Catch the falling ball. Actions: 0 left, 1 stay, 2 right.

    Args:
        image_size: side of the square picture in pixels, at least 10.
        render_mode: None or "rgb_array".
    """

    state_names = ("ball_row", "ball_column", "paddle_column")

    def __init__(self, image_size: int = 64, render_mode: str | None = None) -> None:
        if image_size < CATCH_ROWS:
            raise ValueError(f"image_size must be at least {CATCH_ROWS}, found {image_size}")
        super().__init__(image_size, 3, render_mode)
        self.ball_row = self.ball_column = self.paddle_column = 0
        self._row_edges = np.arange(CATCH_ROWS + 1) * image_size // CATCH_ROWS
        self._column_edges = np.arange(CATCH_COLUMNS + 1) * image_size // CATCH_COLUMNS

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
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
        reward = (1.0 if self.ball_column == self.paddle_column else -1.0) if landed else 0.0
        return self.render(), reward, landed, False, {}

    def render(self) -> np.ndarray:
        """The board, uint8 (S, S, 3)."""
        picture = np.full(self.observation_space.shape, BACKGROUND, np.uint8)
        self._cell(picture, CATCH_ROWS - 1, self.paddle_column)[:] = PADDLE
        self._cell(picture, self.ball_row, self.ball_column)[:] = BALL
        return picture

    def _cell(self, picture: np.ndarray, row: int, column: int) -> np.ndarray:
        rows, columns = self._row_edges, self._column_edges
        return picture[rows[row] : rows[row + 1], columns[column] : columns[column + 1]]


class Twins(DiagnosticEnv):
    """Each frame one of `num_pictures` equally likely pictures; the two actions do nothing.

    The reward is 0, and an episode is truncated after `episode_length` steps.

    Args:
        image_size: side of the square picture in pixels, a multiple of 4 * grid.
        num_pictures: classes, 2 to 16.
        grid: a picture has grid x grid parts, all of the picture's class.
        episode_length: in steps.
        render_mode: None or "rgb_array".
    """

    state_names = ("picture", "elapsed")

    def __init__(
        self,
        image_size: int = 64,
        num_pictures: int = 16,
        grid: int = 4,
        episode_length: int = 64,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(image_size, 2, render_mode)
        self._pictures = twins_pictures(image_size, num_pictures, grid)
        self.episode_length = episode_length
        self.picture = self.elapsed = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
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
        """The present picture, uint8 (S, S, 3)."""
        return self._pictures[self.picture].copy()

    def _draw(self) -> tuple[np.ndarray, dict[str, Any]]:
        self.picture = int(self.np_random.integers(len(self._pictures)))
        return self.render(), {"picture": self.picture}


@functools.lru_cache(maxsize=8)
def twins_pictures(image_size: int = 64, num_pictures: int = 16, grid: int = 4) -> np.ndarray:
    """All pictures of Twins, uint8 (num_pictures, S, S, 3), read-only.

    A class has a colour of its own and, as the pattern of each part, a row of the 16 x 16
    Hadamard matrix: rows are orthogonal, so that no two classes are alike even without colour.

    Raises:
        ValueError: sizes that do not fit.
    """
    if not 2 <= num_pictures <= MAX_PICTURES:
        raise ValueError(f"num_pictures must be 2 to {MAX_PICTURES}, found {num_pictures}")
    if grid < 1 or image_size < 1 or image_size % (GLYPH * grid):
        raise ValueError(f"image_size must be a multiple of {GLYPH * grid} (4 * grid), found {image_size}")
    hadamard = functools.reduce(np.kron, [np.array([[1, 1], [1, -1]])] * 4)
    pixels = image_size // (GLYPH * grid)
    glyphs = hadamard.reshape(MAX_PICTURES, GLYPH, GLYPH)[:num_pictures].repeat(pixels, 1).repeat(pixels, 2)
    hues = np.arange(num_pictures) / num_pictures
    bright = np.array([colorsys.hsv_to_rgb(hue, 0.8, 1.0) for hue in hues])[:, None, None]
    part = np.where(glyphs[..., None] > 0, bright, 0.25 * bright)
    pictures = np.tile(np.rint(255 * part).astype(np.uint8), (1, grid, grid, 1))
    pictures.setflags(write=False)
    return pictures


def parts_of(frames: np.ndarray, num_pictures: int = 16, grid: int = 4, tolerance: float = 0.5) -> np.ndarray:
    """The class that each part of each frame shows, by its nearest pattern.

    Args:
        frames: (..., S, S, 3) in [0, 255], integers or floats.
        num_pictures, grid: those of the environment.
        tolerance: a part further than this share of the smallest distance between two patterns
            from all of them (a blend, a blur) shows no class.

    Returns:
        int64 (..., grid, grid), -1 where no class is recognised.
    """
    pictures = twins_pictures(frames.shape[-2], num_pictures, grid).astype(np.float32)
    lead, side = frames.shape[:-3], frames.shape[-2] // grid

    def part_distance(difference: np.ndarray) -> np.ndarray:  # (..., S, S, 3) → (..., grid, grid)
        cells = np.square(difference).reshape(*difference.shape[:-3], grid, side, grid, side, 3)
        return np.sqrt(cells.mean(axis=(-4, -2, -1)))

    frames = np.asarray(frames, dtype=np.float32)
    distance = np.stack([part_distance(frames - picture) for picture in pictures], axis=-1)
    apart = min(part_distance(pictures[a] - pictures[b]).min() for a in range(num_pictures) for b in range(a))
    classes = np.where(distance.min(-1) < tolerance * apart, distance.argmin(-1), -1)
    return classes.reshape(*lead, grid, grid)


def is_consistent(
    frames: np.ndarray, num_pictures: int = 16, grid: int = 4, tolerance: float = 0.5
) -> np.ndarray:
    """Whether all parts of a frame show one and the same class, bool (...); arguments as `parts_of`."""
    parts = parts_of(frames, num_pictures, grid, tolerance).reshape(*frames.shape[:-3], grid * grid)
    return (parts[..., 0] >= 0) & (parts == parts[..., :1]).all(-1)


gymnasium.register("Diagnostic/Catch-v0", entry_point="environments.diagnostic:Catch")
gymnasium.register("Diagnostic/Twins-v0", entry_point="environments.diagnostic:Twins")
