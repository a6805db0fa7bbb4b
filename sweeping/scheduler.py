"""Takes every run of a sweep through its stages: waiting, running, again if it dies, done or failed."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sweeping.progress import Progress
from sweeping.runs import EVALUATE, TRAIN, SweepRun

WAITING, RUNNING, DONE, FAILED, STOPPED = "waiting", "running", "done", "failed", "stopped"
USER_ERROR, NOT_FINISHED = 2, 75  # exit codes of train.py, besides 0
REFRESH_SECONDS = 1.0


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code, or None and why there is none."""

    code: int | None
    reason: str = ""


class Engine(Protocol):
    """What runs the commands."""

    def submit(self, name: str, command: list[str], folder: str, log: str, lock: str | None) -> None: ...

    def wait(self, seconds: float) -> list[tuple[str, Outcome]]: ...

    def stop(self) -> None: ...


@dataclass
class Entry:
    """A run and where it stands."""

    run: SweepRun
    state: str = WAITING
    stage: str | None = None
    attempts: int = 0  # of this stage
    fruitless: int = 0  # the last of them, in a row, that saved nothing new
    started_at: int = 0  # step
    log_size: int = 0  # bytes, when the attempt was submitted
    note: str = ""  # what a reader of the table should know
    progress: Progress = field(default_factory=Progress)

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen to the run."""
        return self.state in (DONE, FAILED, STOPPED)


class Sweep:
    """The runs of a grid, on an engine.

    Args:
        runs: in the order they are to start. retries: how often in a row a run that dies
            without having come further is started again.
    """

    def __init__(self, runs: Sequence[SweepRun], retries: int) -> None:
        self.entries = {run.name: Entry(run) for run in runs}
        self._retries = retries
        for entry in self.entries.values():
            obstacle = entry.run.obstacle()
            if obstacle is not None:
                entry.state, entry.note = FAILED, obstacle
            elif self._leave_stage(entry) and entry.state == DONE:
                entry.note = f"already {entry.run.goal}, skipped"

    @property
    def is_over(self) -> bool:
        """Whether no run is left to wait for."""
        return all(entry.is_over for entry in self.entries.values())

    def run(self, engine: Engine, stop_asked: Callable[[], bool], show: Callable[[], None]) -> None:
        """Run what is not done; `show` is called about once a second.

        When `stop_asked`, the runs are told to stop, and waited for while they save.
        """
        for entry in self.entries.values():
            if not entry.is_over:
                self._submit(entry, engine)
        told = False
        while not self.is_over:
            show()
            ended = engine.wait(REFRESH_SECONDS)
            if stop_asked() and not told:
                engine.stop()
                told = True
            for name, outcome in ended:
                self._settle(self.entries[name], outcome, engine, told)
            for entry in self.entries.values():
                refresh(entry)
        show()

    def _leave_stage(self, entry: Entry) -> bool:
        """Go on to the next stage or be done; False if the present one is still to do."""
        left = entry.stage
        entry.stage = None if left == EVALUATE else entry.run.next_stage()
        if entry.stage is None:
            entry.state = DONE
        elif entry.stage != left:
            entry.attempts = entry.fruitless = 0
        return entry.stage != left or entry.state == DONE

    def _submit(self, entry: Entry, engine: Engine) -> None:
        run, stage = entry.run, entry.stage
        assert stage is not None
        entry.state = WAITING
        entry.attempts += 1
        entry.started_at = run.saved_step()
        entry.log_size = size_of(run.log(stage))
        lock = str(run.directory.lock_file) if stage == TRAIN else None
        engine.submit(run.name, run.command(stage), str(run.directory.root), str(run.log(stage)), lock)

    def _settle(self, entry: Entry, outcome: Outcome, engine: Engine, stopping: bool) -> None:
        """Decide what follows from the end of an attempt."""
        entry.note = ""
        if outcome.code == 0 and self._leave_stage(entry):
            if entry.state != DONE and stopping:
                entry.state = STOPPED
            elif entry.state != DONE:
                self._submit(entry, engine)
            return
        entry.note = describe(entry, outcome)
        if outcome.code == USER_ERROR:
            entry.state = FAILED
        elif stopping:
            entry.state = STOPPED
        elif self._may_retry(entry):
            self._submit(entry, engine)
        else:
            entry.state = FAILED

    def _may_retry(self, entry: Entry) -> bool:
        came_further = entry.stage == TRAIN and entry.run.saved_step() > entry.started_at
        entry.fruitless = 1 if came_further else entry.fruitless + 1
        return entry.fruitless <= self._retries


def refresh(entry: Entry) -> None:
    """Notice that an attempt has begun, and how far it is."""
    if entry.state == WAITING and entry.stage and size_of(entry.run.log(entry.stage)) > entry.log_size:
        entry.state = RUNNING
    if entry.state == RUNNING and entry.stage == TRAIN:
        entry.progress = entry.run.progress()


def describe(entry: Entry, outcome: Outcome) -> str:
    """Why an attempt ended before its time."""
    assert entry.stage is not None
    code = outcome.code
    if code is None:
        return outcome.reason
    if code == NOT_FINISHED:
        return f"stopped by a signal, saved at step {entry.run.saved_step():,}"
    if code < 0:
        return f"killed by {signal_name(-code)}"
    return f"exit code {code}: {entry.run.last_words(entry.stage)}"


def signal_name(number: int) -> str:
    """SIGKILL of 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def size_of(path: Path) -> int:
    """Bytes of a file, 0 if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
