"""Reading metrics.jsonl, whose lines are {"step": int, "<tag>": float or null, ...}."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils import UserError

CLOCK = "time/elapsed_s"  # seconds since the start of training


@dataclass(frozen=True)
class Record:
    """What was logged at an environment step: a number by tag, None where it was not finite."""

    step: int
    values: dict[str, float | None]

    @property
    def line(self) -> str:
        """The record as it stands in the file, its line break included."""
        return json.dumps({"step": self.step, **self.values}) + "\n"

    @property
    def episode_return(self) -> float | None:
        """The return of a training episode that ended here; None if none did."""
        tags = (tag for tag in self.values if tag.startswith("sample/") and tag.endswith("_reward"))
        return self.values.get(next(tags, ""))


def read_metrics(path: Path) -> Iterator[Record]:
    """Yield the records of a file in its order; none if there is no file.

    A last line without an end (still being written, or torn by a kill) is left out if it is not whole.
    Raises UserError if the file cannot be read or another line is damaged.
    """
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                record = _parse(line)
                if record is not None:
                    yield record
                elif line.endswith(b"\n") and line.strip():
                    raise UserError(f"{path}, line {number}: not a JSON object with a step and numbers")
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path} is not readable: {error.strerror}") from error


def _parse(line: bytes) -> Record | None:
    """The record of a line; None if it is none."""
    try:
        content = json.loads(line)
        step = content.pop("step")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    are_numbers = all(isinstance(value, (int, float, type(None))) for value in content.values())
    return Record(step, content) if type(step) is int and are_numbers else None


@dataclass(frozen=True)
class History:
    """What training itself logged."""

    return_steps: np.ndarray  # (E,) step at which a training episode ended
    returns: np.ndarray  # (E,) its return
    seconds: float | None  # of training, as last logged; None if it never was
    last_step: int  # of the last record, 0 if there is none


def read_history(path: Path) -> History:
    """Read the training episodes and the wall-clock of a file; raises as `read_metrics`."""
    records = [(each.step, each.episode_return, each.values.get(CLOCK)) for each in read_metrics(path)]
    table = np.array(records, dtype=float).reshape(-1, 3)  # NaN for None
    episodes, times = (table[np.isfinite(table[:, column])] for column in (1, 2))
    last_step = int(table[:, 0].max(initial=0))
    return History(episodes[:, 0], episodes[:, 1], next(reversed(times[:, 2]), None), last_step)


def thin(records: Sequence[Record], others: int) -> list[Record]:
    """Return all records of training episodes and about `others` of the rest, the last one always."""
    rest = [index for index, record in enumerate(records) if record.episode_return is None]
    places = np.linspace(0, len(rest) - 1, min(others, len(rest))).round().astype(int)
    kept = {rest[place] for place in places}
    return [
        record for index, record in enumerate(records) if index in kept or record.episode_return is not None
    ]
