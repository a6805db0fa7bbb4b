"""The live table of a sweep: redrawn in place on a terminal, one line per change elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from datetime import timedelta
from typing import TextIO

from sweeping.progress import Progress
from sweeping.runs import EVALUATE, TRAIN
from sweeping.scheduler import DONE, FAILED, RUNNING, STOPPED, WAITING, Entry

CLEAR_BELOW = "\x1b[J"
UP = "\x1b[{}F"  # to the start of the line so many above
ORDER = (DONE, RUNNING, WAITING, FAILED, STOPPED)
SHOWN = (RUNNING, FAILED)  # with a row each, on a terminal


def summary(entries: Collection[Entry]) -> str:
    """How many runs are in which state."""
    counts = {state: sum(entry.state == state for entry in entries) for state in ORDER}
    shown = [f"{count} {state}" for state, count in counts.items() if count or state in ORDER[:-1]]
    noun = "run" if len(entries) == 1 else "runs"
    return f"{len(entries)} {noun}: {', '.join(shown)}"


def describe_progress(progress: Progress) -> str:
    """Step, speed, time left and last return, as far as they are known."""
    if progress.step is None:
        return "starting"
    parts = [f"step {progress.step:,}/{progress.wanted:,}"]
    if progress.speed:
        parts.append(f"{progress.speed:.1f} steps/s")
    if progress.seconds_left is not None:
        parts.append(f"ETA {timedelta(seconds=round(progress.seconds_left))}")
    if progress.last_return is not None:
        parts.append(f"last return {progress.last_return:g}")
    return "  ".join(parts)


def describe(entry: Entry) -> str:
    """A run's state in some words."""
    words = entry.state
    if entry.state == RUNNING:
        words = "evaluating" if entry.stage == EVALUATE else "running"
        words += f", attempt {entry.attempts}" if entry.attempts > 1 else ""
    elif entry.state == WAITING and entry.attempts > 1:
        words = "to be started again"
    elif entry.state == WAITING and entry.stage == EVALUATE and TRAIN in entry.run.stages:
        words = "trained, waiting for its evaluation"
    return f"{words} ({entry.note})" if entry.note else words


class Table:
    """Shows the entries of a sweep on a stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._drawn = 0  # lines of the table on the terminal
        self._said: dict[str, str] = {}

    def show(self, entries: Collection[Entry]) -> None:
        """Bring what is shown up to date."""
        if self._is_terminal:
            self._draw(entries)
        else:
            self._say_changes(entries)

    def clear(self) -> None:
        """Take the table off the terminal."""
        if self._drawn:
            self._stream.write(UP.format(self._drawn) + CLEAR_BELOW)
        self._drawn = 0

    def _say_changes(self, entries: Collection[Entry]) -> None:
        for entry in entries:
            words = describe(entry)
            if words != self._said.get(entry.run.name, WAITING):
                self._stream.write(f"{entry.run.name}: {words}\n")
            self._said[entry.run.name] = words
        self._stream.flush()

    def _draw(self, entries: Collection[Entry]) -> None:
        size = shutil.get_terminal_size()
        lines = [summary(entries)]
        shown = [entry for state in SHOWN for entry in entries if entry.state == state]
        width = max((len(entry.run.name) for entry in shown), default=0)
        for entry in shown:
            detail = describe_progress(entry.progress) if entry.stage == TRAIN else ""
            words = f"{describe(entry)}  {detail}" if entry.state == RUNNING else describe(entry)
            lines.append(f"  {entry.run.name:{width}}  {words}".rstrip())
        hidden = len(lines) - (size.lines - 2)
        if hidden > 0:
            lines = [*lines[: -hidden - 1], f"  … and {hidden + 1} more"]
        text = "".join(line[: size.columns - 1] + "\n" for line in lines)
        self.clear()
        self._stream.write(text)
        self._stream.flush()
        self._drawn = len(lines)
