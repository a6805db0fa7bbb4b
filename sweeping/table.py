"""The live table of a sweep: redrawn in place on a terminal, one line per change elsewhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from typing import TextIO

from sweeping.runs import EVALUATE, TRAIN
from sweeping.scheduler import EVALUATING, FAILED, STATES, TRAINING, WAITING, Entry

CLEAR_BELOW = "\x1b[J"
UP = "\x1b[{}F"  # to the start of the line so many above


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
    """Shows the entries of a sweep on a stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._drawn = 0  # lines of the table on the terminal
        self._said: dict[str, str] = {}

    def show(self, entries: Collection[Entry]) -> None:
        """Bring what is shown up to date."""
        if self._stream.isatty():
            lines = table_lines(entries, shutil.get_terminal_size())
            self.clear()
            self._drawn = len(lines)
        else:
            words = {entry.run.name: describe(entry) for entry in entries}
            lines = [
                f"{name}: {said}" for name, said in words.items() if said != self._said.get(name, WAITING)
            ]
            self._said = words
        self._stream.write("".join(f"{line}\n" for line in lines))
        self._stream.flush()

    def clear(self) -> None:
        """Take the table off the terminal."""
        if self._drawn:
            self._stream.write(UP.format(self._drawn) + CLEAR_BELOW)
        self._drawn = 0


def table_lines(entries: Collection[Entry], size: os.terminal_size) -> list[str]:
    """Return a summary and a row for each run that is at work or failed, as many as fit."""
    rows = [f"  {entry.run.name}  {describe(entry)}" for entry in entries if entry.state == FAILED]
    for stage, state in ((TRAIN, TRAINING), (EVALUATE, EVALUATING)):
        at_work = [entry for entry in entries if entry.state == state]
        rows += [f"  {each.run.name}  {describe(each)}  {each.run.last_line(stage)}" for each in at_work]
    room = size.lines - 3
    if len(rows) > room:
        rows = [*rows[: room - 1], f"  … and {len(rows) - room + 1} more"]
    return [line[: size.columns - 1] for line in [summary(entries), *rows]]
