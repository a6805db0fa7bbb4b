"""Reading what a run leaves: evaluation CSVs, single episodes, training metrics, JSON facts."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils import UserError, write_atomically

SECONDS_PER_HOUR = 3600
NUMBERS = ("finished_step", "sample_max_steps", "elapsed_s")  # of a run.json


@dataclass(frozen=True)
class Evaluation:
    step: int  # environment step of the checkpoint
    mean: float  # mean episode return
    std: float | None  # standard deviation over its episodes
    episodes: int | None  # how many
    how: str = ""  # what is unusual in how it was made: "greedily", "by the release's protocol" or both


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
