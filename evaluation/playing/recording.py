"""Recorded play: a video, and a trajectory that training takes as demonstrations."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from evaluation.video import Video, side_by_side
from utils import as_file_name, write_atomically

MOST_STEPS = 20_000  # of a recording; at 64 x 64 pixels about 250 MB of memory
FRAMES_A_SECOND = 15


class Recording:
    """Steps of play.

    Args:
        folder: that files are written to. name: that theirs begin with.
    """

    def __init__(self, folder: Path, name: str) -> None:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        self._path = folder / as_file_name(f"{name}-{stamp}")
        self._steps: list[tuple[np.ndarray, np.ndarray, float, bool]] = []
        self._video = Video(FRAMES_A_SECOND)
        self._has_pictures = False

    def add(
        self,
        observation: np.ndarray,
        action: np.ndarray,
        reward: float,
        done: bool,
        pictures: list[np.ndarray],
    ) -> None:
        """Append a step: what the action was chosen on, the raw reward and end, and pictures to film."""
        self._steps.append((np.array(observation), action, reward, done))
        if pictures:
            self._video.add(side_by_side(pictures))
            self._has_pictures = True

    def __len__(self) -> int:
        """Steps so far."""
        return len(self._steps)

    @property
    def is_full(self) -> bool:
        """Whether it should be saved now."""
        return len(self) >= MOST_STEPS

    def save(self) -> list[Path]:
        """Write .npz, as JointTrainAgent.UseDemonstration reads it, and a video; return the files' paths.

        Raises:
            UserError: they cannot be written.
        """
        if not self._steps:
            return []
        observation, action, reward, done = zip(*self._steps, strict=True)
        arrays = {
            "obs": np.stack(observation),
            "action": np.stack(action),
            "reward": np.array(reward, np.float32),
            "done": np.array(done, np.float32),
        }
        trajectory = self._path.with_name(f"{self._path.name}.npz")
        write_atomically(trajectory, lambda file: np.savez_compressed(file, **arrays))
        return [trajectory, self._video.save(self._path)] if self._has_pictures else [trajectory]
