"""Takes every run of a sweep through its stages, again if it dies, until it is done or failed."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol

from tqdm import tqdm

from sweeping.local import Job
from sweeping.options import EVALUATE
from sweeping.runs import TRAIN, SweepRun
from utils import NOT_FINISHED, USER_ERROR

WAITING, TRAINING, TRAINED, EVALUATING, EVALUATED, FAILED, STOPPED = STATES = (
    *("waiting", "training", "trained", "evaluating", "evaluated", "failed", "stopped"),
)
REFRESH_SECONDS = 1.0


class Engine(Protocol):
    """What runs jobs, as many at once as it has places; told to stop, it ends them soon."""

    places: int

    def run(self, job: Job) -> int | str: ...  # the exit code, or why there is none

    def stop(self) -> None: ...


@dataclass
class Entry:
    """A run and where it stands."""

    run: SweepRun
    state: str = WAITING
    attempts: int = 0  # of this stage
    note: str = ""  # what a reader of the table should know

    def __post_init__(self) -> None:
        """Skip what is done."""
        if all(self.run.is_done(stage) for stage in self.run.stages):
            self.state, self.note = self.goal, "done before, skipped"

    @property
    def goal(self) -> str:
        """The state of a run that has nothing left to do."""
        return EVALUATED if EVALUATE in self.run.stages else TRAINED

    @property
    def words(self) -> str:
        """The state in some words."""
        words = f"{self.state}, attempt {self.attempts}" if self.attempts > 1 else self.state
        return f"{words} ({self.note})" if self.note else words

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen to the run."""
        return self.state in (self.goal, FAILED, STOPPED)

    def carry_out(self, engine: Engine, retries: int, is_stopping: Callable[[], bool]) -> None:
        """Take the run through its stages.

        Args:
            retries: how often in a row it is started again if it dies without having come further.
        """
        for stage in self.run.stages:
            self.note, self.attempts, fruitless = "", 0, 0
            while not self.run.is_done(stage):
                if is_stopping():
                    self.state = STOPPED
                    return
                before = self.run.saved_step()
                self.state, self.attempts = TRAINING if stage == TRAIN else EVALUATING, self.attempts + 1
                outcome = engine.run(self.run.job(stage))
                if outcome == 0 and (stage == EVALUATE or self.run.is_done(stage)):
                    break
                self.note = describe(self.run, stage, outcome)
                came_further = stage == TRAIN and self.run.saved_step() > before
                fruitless = 1 if came_further else fruitless + 1
                if outcome == USER_ERROR or (fruitless > retries and not is_stopping()):
                    self.state, self.note = FAILED, f"{self.note}; see {self.run.log(stage)}"
                    return
            self.state = TRAINED if stage == TRAIN else EVALUATED
        self.note, self.attempts = "", 0


def summary(entries: Collection[Entry]) -> str:
    """Return how many runs are in which state."""
    states = [entry.state for entry in entries]
    counts = ", ".join(f"{states.count(state)} {state}" for state in STATES if state in states)
    return f"{len(states)} run{'s' if len(states) > 1 else ''}: {counts}"


class Table:
    """Says on stderr what changes and, on a terminal, how many runs are in which state, how far they are."""

    def __init__(self) -> None:
        self._lines: dict[str, tqdm] = {}  # of the terminal, by run; "" of all
        self._said: dict[str, str] = {}

    def show(self, entries: Collection[Entry]) -> None:
        """Bring what is shown up to date."""
        for entry in entries:
            if entry.words != self._said.get(entry.run.name, WAITING):
                tqdm.write(f"{entry.run.name}: {entry.words}", file=sys.stderr)
            self._said[entry.run.name] = entry.words
        if not sys.stderr.isatty():
            return
        rows = {"": summary(entries)}
        for stage, state in ((TRAIN, TRAINING), (EVALUATE, EVALUATING)):
            at_work = [entry.run for entry in entries if entry.state == state]
            rows |= {run.name: f"  {run.name}  {state}  {run.last_line(stage)}" for run in at_work}
        for name in self._lines.keys() - rows.keys():
            self._lines.pop(name).close()
        for name, text in rows.items():
            if name not in self._lines:
                self._lines[name] = tqdm(bar_format="{desc}", leave=False)
            self._lines[name].set_description_str(text[: shutil.get_terminal_size().columns - 1])

    def close(self) -> None:
        """Take these lines off the terminal."""
        for line in reversed(self._lines.values()):
            line.close()


def carry_out(
    entries: Collection[Entry],
    engine: Engine,
    retries: int,
    is_stopping: Callable[[], bool],
    show: Callable[[], None],
) -> None:
    """Carry out what is not done; `show` is called about once a second.

    When `is_stopping`, the runs are told to stop, and waited for while they save.
    """
    waiting = [entry for entry in entries if not entry.is_over]
    with ThreadPoolExecutor(min(engine.places, len(waiting))) as pool:
        left = {pool.submit(entry.carry_out, engine, retries, is_stopping) for entry in waiting}
        while left:
            show()
            done, left = wait(left, REFRESH_SECONDS)
            for future in done:
                future.result()
            if is_stopping():
                engine.stop()
    show()


def describe(run: SweepRun, stage: str, outcome: int | str) -> str:
    """Return why an attempt ended before its time."""
    if isinstance(outcome, str):
        return outcome
    if outcome == NOT_FINISHED:
        return f"stopped by a signal, saved at step {run.saved_step():,}"
    if outcome < 0:
        return f"killed by {signal.Signals(-outcome).name}"
    return f"exit code {outcome}: {run.last_line(stage) or 'it printed nothing'}"
