"""What a sweep says of its runs: a line for each change and, on a terminal, how many are in which state."""

from __future__ import annotations

import sys
from collections.abc import Collection

from tqdm import tqdm

from sweeping.scheduler import STATES, WAITING, Entry


def summary(entries: Collection[Entry]) -> str:
    """Return how many runs are in which state."""
    states = [entry.state for entry in entries]
    counts = ", ".join(f"{states.count(state)} {state}" for state in STATES if state in states)
    return f"{len(states)} run{'s' if len(states) > 1 else ''}: {counts}"


def describe(entry: Entry) -> str:
    """Return a run's state in some words."""
    words = f"{entry.state}, attempt {entry.attempts}" if entry.attempts > 1 else entry.state
    return f"{words} ({entry.note})" if entry.note else words


class Table:
    """Shows the entries of a sweep on stderr."""

    def __init__(self) -> None:
        self._bar = tqdm(bar_format="{desc}", disable=None, leave=False)  # on a terminal only
        self._said: dict[str, str] = {}

    def show(self, entries: Collection[Entry]) -> None:
        """Bring what is shown up to date."""
        for entry in entries:
            words = describe(entry)
            if words != self._said.get(entry.run.name, WAITING):
                tqdm.write(f"{entry.run.name}: {words}", file=sys.stderr)
            self._said[entry.run.name] = words
        self._bar.set_description_str(summary(entries))

    def close(self) -> None:
        """Take the last line off the terminal."""
        self._bar.close()
