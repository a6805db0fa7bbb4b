"""The evaluation CSVs of a run: outputs/eval_result/<run>.csv, one row per evaluation of a checkpoint,
and <run>_episodes.csv, one row per episode of each. The former begins with the STORM release's columns.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils import UserError, write_atomically

Key = tuple[Any, ...]
# Column → field, type. Older tables, and the release's, lack some.
HOW = {
    "episodes": ("episodes", int),
    "seed": ("seed", int),
    "protocol": ("protocol", str),
    "greedy": ("greedy", int),
    "num_envs": ("num_envs", int),
    "settings": ("settings", str),
}
EVALUATION = {
    "step": ("step", int),
    "episode_avg_return": ("mean", float),
    "episode_std_return": ("std", float),
    "human_normalised_score": ("normalised", float),
    **HOW,
}
EPISODE = {
    "step": ("step", int),
    "episode": ("number", int),
    "return": ("score", float),
    "length": ("length", int),
    **HOW,
}
NEEDED = ("step", "episode_avg_return", "return")  # the columns without which a table is none


@dataclass(frozen=True)
class Episode:
    """One whole episode: return in raw score, length in agent steps (None: not recorded)."""

    score: float
    length: int | None


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of one checkpoint: its result, and what makes it another one. None: not recorded."""

    step: int  # environment step of the checkpoint
    mean: float  # mean episode return
    std: float | None = None  # standard deviation of the episodes' returns
    normalised: float | None = None  # human-normalised mean
    episodes: int | None = None  # how many
    seed: int | None = None
    protocol: str = ""  # fair, release, or "": not recorded
    greedy: int = 0
    num_envs: int | None = None  # parallel environments
    settings: str = ""  # what differs from the run's own, as Key=value, separated by spaces

    @property
    def key(self) -> Key:
        """What no two evaluations of a table share."""
        return _key(vars(self))

    @property
    def how(self) -> str:
        """What is unusual in how it was made, in words; "" if nothing."""
        words = ["greedily"] if self.greedy else []
        words += ["by the release's protocol"] if self.protocol == "release" else []
        words += [f"with {self.settings}"] if self.settings else []
        return " and ".join(words)


def _key(values: dict[str, Any]) -> Key:
    fields = ("step", *(field for field, _ in HOW.values()))
    return tuple(values.get(field, getattr(Evaluation, field, None)) for field in fields)


def episode_table(table: Path) -> Path:
    """Return where the episodes of an evaluation table lie."""
    return table.with_name(f"{table.stem}_episodes.csv")


def read_evaluations(path: Path) -> list[Evaluation]:
    """Return the rows of an evaluation table by step, [] if there is no such file.

    Of rows with the same `key` the last counts. Raise UserError if the file is not such a table.
    """
    rows = (Evaluation(**values) for _, values in _read(path, EVALUATION))
    return sorted({row.key: row for row in rows}.values(), key=lambda row: row.step)


def read_episodes(path: Path) -> dict[Key, list[Episode]]:
    """Return the episodes of each evaluation by its `key`, {} if there is no such file.

    Raise UserError if the file is not a table of episodes.
    """
    groups: dict[Key, list[Episode]] = {}
    for _, values in _read(path, EPISODE):
        groups.setdefault(_key(values), []).append(Episode(values["score"], values.get("length")))
    return {(step, count or len(group), *rest): group for (step, count, *rest), group in groups.items()}


def best_rows(rows: Iterable[Evaluation]) -> list[Evaluation]:
    """Return the row that counts for each step: fair, sampled, by the run's own settings, most episodes."""

    def worth(row: Evaluation) -> tuple[bool, bool, bool, int]:
        return row.protocol != "release", not row.greedy, not row.settings, row.episodes or 0

    ranked = sorted(rows, key=worth)  # stable: of equals the later one counts
    return sorted({row.step: row for row in ranked}.values(), key=lambda row: row.step)


def append(table: Path, evaluation: Evaluation, episodes: Sequence[Episode]) -> None:
    """Add an evaluation and its episodes to both tables; only one with the same `key` is replaced.

    Other processes may do the same meanwhile. Raise UserError if a table cannot be read or
    written; it is then as it was.
    """
    how = vars(evaluation)
    single = [how | {"number": number, **vars(episode)} for number, episode in enumerate(episodes)]
    with _locked(table.parent):
        _rewrite(episode_table(table), EPISODE, single)
        _rewrite(table, EVALUATION, [how])


def _read(path: Path, columns: dict[str, tuple[str, type]]) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """Return every row of a table: as it is written, and the fields that are not empty."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is not a regular file")
    try:
        reader = csv.DictReader(path.read_text(encoding="utf-8").splitlines())
        missing = {column for column in columns if column in NEEDED} - set(reader.fieldnames or ())
        if missing:
            raise UserError(f"{path}: is not such a table, without a column {', '.join(sorted(missing))}")
        return [(row, _fields(path, reader.line_num, row, columns)) for row in reader]
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a table ({error})") from error


def _fields(
    path: Path, line: int, row: dict[str, str], columns: dict[str, tuple[str, type]]
) -> dict[str, Any]:
    values = {}
    for column, (field, kind) in columns.items():
        text = row.get(column)
        try:
            if text or column in NEEDED:
                values[field] = int(float(text)) if kind is int else kind(text)
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{path}, line {line}: {column} is {text!r}") from error
    return values


def _rewrite(path: Path, columns: dict[str, tuple[str, type]], new: list[dict[str, Any]]) -> None:
    """Write a table anew with `new` rows of one key in place of those of that key."""
    rows = []
    for row, values in _read(path, columns):
        if set(row) - set(columns):
            raise UserError(f"{path}: has columns that are not of such a table; move it away")
        if _key(values) != _key(new[0]):
            rows.append((values["step"], [row.get(column, "") for column in columns]))
    fields = [field for field, _ in columns.values()]
    rows += [(values["step"], [_text(values.get(field)) for field in fields]) for values in new]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(row for _, row in sorted(rows, key=lambda pair: pair[0]))
    write_atomically(path, lambda output: output.write(file.getvalue().encode()))


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.10g}" if isinstance(value, float) else str(value)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process where its file system has locks."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
