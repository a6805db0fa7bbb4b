"""How far a run has come, read from the end of its files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

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


def read_progress(lines: Iterable[str], wanted: int) -> Progress:
    """Progress from lines of metrics.jsonl, the newest first; damaged ones are passed over."""
    step = speed = last_return = None
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if not isinstance(record, dict):
            continue
        step = record.get("step") if step is None else step
        speed = record.get("time/steps_per_s") if speed is None else speed
        returns = [value for tag, value in record.items() if re.fullmatch(r"sample/.+_reward", tag)]
        last_return = returns[-1] if returns and last_return is None else last_return
        if None not in (step, speed, last_return):
            break
    return Progress(step, wanted, speed, last_return)
