"""Reading and writing small text files of runs and reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from utils import UserError, write_atomically

SECONDS_PER_HOUR = 3600
MOST = 1e15
NUMBERS = ("finished_step", "sample_max_steps", "elapsed_s")  # of a run.json


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
    """A run.json, {} if there is none; UserError if it is damaged or one of its NUMBERS cannot be one."""
    status = read_json(path)
    for key in NUMBERS:
        value = status.get(key, 0)
        if not isinstance(value, (int, float)) or value > MOST:
            raise UserError(f"{path}: {key} is {value!r:.40}, not a possible number")
    return status


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all; names of files stay what they are in every locale."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8", "surrogateescape")))
