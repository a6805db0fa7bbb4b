"""The evaluation CSVs of a run: outputs/eval_result/<run>.csv, one row per evaluation of a checkpoint,
and <run>_episodes.csv, one row per episode of each. The former begins with the STORM release's columns.
"""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from operator import attrgetter
from pathlib import Path

from run_files.directory import EPISODES
from utils import UserError, as_file_name, locked, write_atomically

# Rows that agree in these are of one evaluation. Older tables lack some.
KEY = ("step", "episodes", "seed", "protocol", "greedy", "num_envs", "settings")
COLUMNS = ("step", "episode_avg_return", "episode_std_return", "human_normalised_score", *KEY[1:])
EPISODE_COLUMNS = ("step", "episode", "return", "length", *KEY[1:])
NEEDED = {"step", "episode_avg_return", "return"}
Key = tuple[str, ...]
Row = dict[str, str]


@dataclass(frozen=True)
class Episode:
    """One whole episode: return in raw score, length in agent steps (None: not recorded)."""

    score: float
    length: int | None


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of one checkpoint; its fields are COLUMNS. None or "": not recorded."""

    step: int  # environment step of the checkpoint
    mean: float  # mean episode return
    std: float | None = None  # standard deviation of the episodes' returns
    normalised: float | None = None  # human-normalised mean
    episodes: int | None = None  # how many
    seed: int | None = None
    protocol: str = ""  # fair or release
    greedy: int | None = None
    num_envs: int | None = None  # parallel environments
    settings: str = ""  # what differs from the run's own, as Key=value, separated by spaces

    @property
    def row(self) -> Row:
        """The row of the table."""
        return dict(zip(COLUMNS, map(_text, astuple(self)), strict=True))

    @property
    def key(self) -> Key:
        """What no two evaluations of a table share."""
        return _key(self.row)

    @property
    def worth(self) -> tuple[bool, bool, bool, int]:
        """What decides which of several counts: fair, sampled, by the run's own settings, most episodes."""
        return self.protocol != "release", not self.greedy, not self.settings, self.episodes or 0

    @property
    def file_name(self) -> str:
        """A file's name, without its ending, that no two evaluations of a table share."""
        parts = [str(self.step), f"{self.episodes}_episodes", f"{self.num_envs}_envs", f"seed_{self.seed}"]
        return as_file_name("-".join([*parts, *filter(None, [self.how])]))

    @property
    def how(self) -> str:
        """What is unusual in how it was made, in words; "" if nothing."""
        words = ["greedily"] if self.greedy else []
        words += ["by the release's protocol"] if self.protocol == "release" else []
        words += [f"with {self.settings}"] if self.settings else []
        return " and ".join(words)


KINDS = (int, float, float, float, int, int, str, int, int, str)  # of an Evaluation's fields


def episode_table(table: Path) -> Path:
    """Return where the episodes of an evaluation table lie."""
    return table.with_name(f"{table.stem}{EPISODES}.csv")


def read_evaluations(path: Path) -> list[Evaluation]:
    """Return the rows of an evaluation table by step, [] if there is no such file.

    Of rows with the same `key` the last counts. Raise UserError if the file is not such a table.
    """
    with _reading(path):
        rows = [
            Evaluation(*(_value(row.get(column), kind) for column, kind in zip(COLUMNS, KINDS, strict=True)))
            for row in _read(path, COLUMNS)
        ]
    return sorted({row.key: row for row in rows}.values(), key=lambda row: row.step)


def read_episodes(path: Path) -> dict[Key, list[Episode]]:
    """Return the episodes of each evaluation by its `key`, {} if there is no such file.

    Raise UserError if the file is not a table of episodes.
    """
    groups: dict[Key, list[Episode]] = {}
    with _reading(path):
        for row in _read(path, EPISODE_COLUMNS):
            episode = Episode(float(row["return"]), _value(row.get("length"), int))
            groups.setdefault(_key(row), []).append(episode)
    return {(step, count or str(len(group)), *rest): group for (step, count, *rest), group in groups.items()}


def best_rows(rows: Iterable[Evaluation]) -> list[Evaluation]:
    """Return the row that counts for each step, that of most worth."""
    ranked = sorted(rows, key=attrgetter("worth"))  # stable: of equals the later one counts
    return sorted({row.step: row for row in ranked}.values(), key=lambda row: row.step)


def append(table: Path, evaluation: Evaluation, episodes: Sequence[Episode]) -> None:
    """Add an evaluation and its episodes to both tables; only one with the same `key` is replaced.

    Other processes may do the same meanwhile. Raise UserError if a table cannot be read or
    written; it is then as it was.
    """
    row, single = evaluation.row, []
    for number, each in enumerate(episodes):
        values = {"episode": number, "return": each.score, "length": each.length}
        single.append(row | {name: _text(value) for name, value in values.items()})
    with locked(table.parent):
        _rewrite(episode_table(table), EPISODE_COLUMNS, single)
        _rewrite(table, COLUMNS, [row])


def _rewrite(path: Path, columns: Sequence[str], new: list[Row]) -> None:
    """Write a table with `new` rows of one key in place of those that have it."""
    with _reading(path):
        rows = _read(path, columns)
        if rows and set(rows[0]) - set(columns):
            raise ValueError("it has other columns")
        kept = [row for row in rows if _key(row) != _key(new[0])]
        rows = sorted([*kept, *new], key=lambda row: int(float(row["step"])))
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, file.getvalue())


def _read(path: Path, columns: Sequence[str]) -> list[Row]:
    """Return the rows of a table as they are written, [] if there is no such file."""
    if not path.exists():
        return []
    reader = csv.DictReader(path.read_text(encoding="utf-8").splitlines())
    rows, needed = list(reader), NEEDED.intersection(columns)
    if not needed.issubset(reader.fieldnames or ()):
        raise ValueError(f"it lacks a column of {', '.join(sorted(needed))}")
    for row in rows:
        for column in needed:
            float(row[column])
    return rows


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what can go wrong with a table into a UserError that names it."""
    try:
        yield
    except (OSError, ValueError, TypeError, OverflowError, csv.Error) as error:
        raise UserError(f"{path}: is not a table that can be read ({error})") from error


def _key(row: Row) -> Key:
    return tuple(row.get(column) or "" for column in KEY)


def _value(text: str | None, kind: type) -> int | float | str | None:
    if not text:
        return "" if kind is str else None
    return int(float(text)) if kind is int else kind(text)


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.10g}" if isinstance(value, float) else str(value)
