"""How far a run has come, read from the end of its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from run_files.metrics import SPEED, newest_values

TAIL_BYTES = 65_536


@dataclass(frozen=True)
class Progress:
    """What the last lines of a run's metrics say; None: not logged yet."""

    step: int | None = None
    wanted: int = 0
    speed: float | None = None  # steps a second
    last_return: float | None = None

    @property
    def seconds_left(self) -> float | None:
        """Until the last step, at the present speed."""
        if self.step is None or not self.speed:
            return None
        return max(self.wanted - self.step, 0) / self.speed


def tail_of(path: Path) -> str:
    """The last part of a text file; "" if it cannot be read."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(size - TAIL_BYTES, 0))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def read_progress(metrics: Path, wanted: int) -> Progress:
    """Progress towards step `wanted`, from a run's metrics.jsonl."""
    newest = newest_values(metrics)
    if newest is None:
        return Progress(wanted=wanted)
    return Progress(newest.step, wanted, newest.values.get(SPEED), newest.episode_return)
