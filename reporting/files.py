"""Reading what a run leaves: evaluation CSVs, single episodes, training metrics, JSON facts."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils import UserError, write_atomically

SECONDS_PER_HOUR = 3600
CLOCK = "time/elapsed_s"  # metric: seconds since the start of training
NUMBERS = ("finished_step", "sample_max_steps", "elapsed_s")  # of a run.json


@dataclass(frozen=True)
class Evaluation:
    step: int  # environment step of the checkpoint
    mean: float  # mean episode return
    std: float | None  # standard deviation over its episodes
    episodes: int | None  # how many
    how: str = ""  # what is unusual in how it was made: "greedily", "by the release's protocol" or both


@dataclass(frozen=True)
class History:
    """What training itself logged."""

    return_steps: np.ndarray  # (E,) step at which a training episode ended
    returns: np.ndarray  # (E,) its return
    clock_steps: np.ndarray  # (T,) steps at which the time was logged
    clock_seconds: np.ndarray  # (T,) seconds since the start of training
    last_step: int  # step of the last logged line, 0 if there is none

    def seconds_at(self, steps: np.ndarray) -> np.ndarray | None:
        """Seconds of training after which each of `steps` was reached; None if the time was not logged."""
        if not len(self.clock_steps):
            return None
        return np.interp(steps, np.append(0, self.clock_steps), np.append(0.0, self.clock_seconds))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, {} if there is no such file. Raises UserError if it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold one JSON object")
    return content


def read_status(path: Path) -> dict[str, Any]:
    """A run.json, {} if there is none; UserError if it is damaged or one of its NUMBERS is no number."""
    status = read_json(path)
    for key in NUMBERS:
        if not isinstance(status.get(key, 0), (int, float)):
            raise UserError(f"{path}: {key} is {status[key]!r}, not a number")
    return status


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))


def read_evaluations(path: Path) -> tuple[Evaluation, ...]:
    """The rows of an evaluation CSV by step, a step's last row counting; () if there is no such file.

    Needs the columns step and episode_avg_return; all others may be missing.
    """
    rows = {}
    for number, row in _csv_rows(path, ("step", "episode_avg_return")):
        try:
            step, mean = int(float(row["step"])), float(row["episode_avg_return"])
            std, episodes = row.get("episode_std_return"), row.get("episodes")
            std, episodes = float(std) if std else None, int(float(episodes)) if episodes else None
            rows[step] = Evaluation(step, mean, std, episodes, _how(row))
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}, line {number}: {error}") from error
    return tuple(rows[step] for step in sorted(rows))


def _how(row: dict[str, str]) -> str:
    words = ["greedily"] if row.get("greedy") == "1" else []
    words += ["by the release's protocol"] if row.get("protocol") == "release" else []
    return " and ".join(words)


def read_episodes(path: Path) -> dict[int, list[float]]:
    """step -> returns of the episodes that were played to evaluate it; {} if there is no such file."""
    returns: dict[int, list[float]] = {}
    for number, row in _csv_rows(path, ("step", "return")):
        try:
            returns.setdefault(int(float(row["step"])), []).append(float(row["return"]))
        except (TypeError, ValueError) as error:
            raise UserError(f"{path}, line {number}: {error}") from error
    return returns


def _csv_rows(path: Path, needed: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is not a regular file")
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = set(needed) - set(reader.fieldnames or ())
            if missing:
                raise UserError(f"{path} has no column {', '.join(sorted(missing))}")
            return [(reader.line_num, row) for row in reader]
    except FileNotFoundError:
        return []
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV table: {error}") from error


def metric_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, [] if there is none; a last line still being written is left out."""
    try:
        texts = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return []
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path} is not readable: {error}") from error
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            if text.strip():
                content = json.loads(text)
                lines.append({**content, "step": int(content["step"])})
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            if number < len(texts):
                raise UserError(f"{path}, line {number}: not a JSON object with a step") from error
    return lines


def is_return(tag: str) -> bool:
    """Whether a metric is the return of a training episode, sample/<env>_reward."""
    return tag.startswith("sample/") and tag.endswith("_reward")


def read_history(path: Path) -> History:
    """Training returns and wall-clock of a metrics.jsonl."""
    lines = metric_lines(path)
    returns = [(line["step"], line[tag]) for line in lines for tag in line if is_return(tag)]
    clock = [(line["step"], line.get(CLOCK)) for line in lines]
    episodes, times = _number_pairs(returns), _number_pairs(clock)
    last = max((line["step"] for line in lines), default=0)
    return History(episodes[:, 0], episodes[:, 1], times[:, 0], times[:, 1], last)


def _number_pairs(pairs: list[tuple[int, Any]]) -> np.ndarray:
    """The pairs (step, value) whose value is a number, (n, 2)."""
    kept = [pair for pair in pairs if isinstance(pair[1], (int, float))]
    return np.asarray(kept, dtype=float).reshape(-1, 2)
