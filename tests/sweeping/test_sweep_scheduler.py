"""Which runs of a sweep run again, which are given up, and what the table says."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from sweep_support import WANTED, plan, write_status

from sweeping.progress import Progress
from sweeping.runs import SweepRun
from sweeping.scheduler import DONE, FAILED, RUNNING, STOPPED, WAITING, Entry, Outcome, Sweep
from sweeping.table import Table


class ScriptedEngine:
    """Ends the attempts of each run as told: (step saved, status, exit code), one after the other."""

    def __init__(self, runs: list[SweepRun], script: dict[str, list[tuple[int, str, int | None]]]) -> None:
        self.runs = {run.name: run for run in runs}
        self.script = script
        self.started: list[tuple[str, str]] = []
        self.waiting: list[str] = []
        self.stopped = False

    def submit(self, name: str, command: list[str], folder: str, log: str, lock: str | None) -> None:
        self.started.append((name, Path(command[0]).stem))
        self.waiting.append(name)

    def wait(self, seconds: float) -> list[tuple[str, Outcome]]:
        ended, self.waiting = self.waiting, []
        return [(name, self._end(name)) for name in ended]

    def _end(self, name: str) -> Outcome:
        step, status, code = self.script[name].pop(0)
        if step:
            write_status(self.runs[name], status, step)
        return Outcome(code, "the node died" if code is None else "")

    def stop(self) -> None:
        self.stopped = True


def attempts(
    folder: Path, *ends: tuple[int, str, int | None], retries: int = 2, words: tuple[str, ...] = ()
) -> tuple[Entry, ScriptedEngine]:
    """One run whose attempts end so; where it stands then."""
    runs = plan(folder, f"JointTrainAgent.SampleMaxSteps={WANTED}", "evaluate=false", *words)
    engine = ScriptedEngine(runs, {runs[0].name: list(ends)})
    done = Sweep(runs, retries)
    done.run(engine, lambda: False, lambda: None)
    return done.entries[runs[0].name], engine


def test_a_run_that_dies_is_started_again_by_the_same_command(tmp_path: Path) -> None:
    entry, engine = attempts(tmp_path, (40, "running", -9), (80, "stopped", 75), (WANTED, "finished", 0))
    assert entry.state == DONE and len(engine.started) == 3


def test_a_run_that_comes_further_may_die_as_often_as_it_likes(tmp_path: Path) -> None:
    deaths = [(step, "running", None) for step in range(20, 200, 20)]
    entry, engine = attempts(tmp_path, *deaths, (WANTED, "finished", 0), retries=1)
    assert entry.state == DONE and len(engine.started) == len(deaths) + 1


@pytest.mark.parametrize("code", [1, -9, 75, None, 0])
def test_a_run_that_does_not_come_further_is_given_up(tmp_path: Path, code: int | None) -> None:
    entry, engine = attempts(tmp_path, (20, "running", code), *[(0, "", code)] * 3)
    assert entry.state == FAILED and entry.note
    assert len(engine.started) == 3  # 20 steps, then nothing new twice: the third death in a row


def test_no_retries_means_one_attempt(tmp_path: Path) -> None:
    entry, engine = attempts(tmp_path, (20, "running", -9), retries=0)
    assert entry.state == FAILED and "SIGKILL" in entry.note and len(engine.started) == 1


def test_a_user_error_is_not_tried_again(tmp_path: Path) -> None:
    (run,) = plan(tmp_path)
    run.log("train").parent.mkdir(parents=True)
    run.log("train").write_text("=== a host: python train.py\nerror: no such thing\n\n")
    entry, engine = attempts(tmp_path, (0, "", 2))
    assert entry.state == FAILED and "error: no such thing" in entry.note and len(engine.started) == 1


def test_one_failing_run_does_not_stop_the_rest_and_evaluation_follows(tmp_path: Path) -> None:
    runs = plan(tmp_path, "seeds=0,1", f"JointTrainAgent.SampleMaxSteps={WANTED}")
    good, bad = (run.name for run in runs)
    engine = ScriptedEngine(runs, {good: [(WANTED, "finished", 0), (0, "", 0)], bad: [(0, "", 2)]})
    done = Sweep(runs, retries=2)
    done.run(engine, lambda: False, lambda: None)
    assert [entry.state for entry in done.entries.values()] == [DONE, FAILED]
    assert engine.started == [(good, "train"), (bad, "train"), (good, "eval")]


def test_when_asked_to_stop_nothing_is_started_again(tmp_path: Path) -> None:
    runs = plan(tmp_path, "seeds=0,1,2", f"JointTrainAgent.SampleMaxSteps={WANTED}")
    ends = [[(40, "stopped", 75)], [(0, "", None)], [(WANTED, "finished", 0)]]
    engine = ScriptedEngine(runs, {run.name: end for run, end in zip(runs, ends, strict=True)})
    stopped = Sweep(runs, retries=2)
    stopped.run(engine, lambda: True, lambda: None)
    assert [entry.state for entry in stopped.entries.values()] == [STOPPED] * 3
    assert engine.stopped and len(engine.started) == 3


def test_finished_runs_are_not_started(tmp_path: Path) -> None:
    runs = plan(tmp_path, "seeds=0,1", f"JointTrainAgent.SampleMaxSteps={WANTED}", "evaluate=false")
    write_status(runs[0], "finished", WANTED)
    engine = ScriptedEngine(runs, {runs[1].name: [(WANTED, "finished", 0)]})
    done = Sweep(runs, retries=0)
    done.run(engine, lambda: False, lambda: None)
    assert engine.started == [(runs[1].name, "train")]
    assert "skipped" in done.entries[runs[0].name].note
    assert Sweep(runs, retries=0).is_over


# --- the table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_outside_a_terminal_each_change_is_one_line(tmp_path: Path) -> None:
    entries = [Entry(run) for run in plan(tmp_path, "seeds=0,1")]
    stream = io.StringIO()
    table = Table(stream)
    table.show(entries)
    assert stream.getvalue() == ""
    entries[0].state, entries[0].stage = RUNNING, "train"
    for _ in range(3):
        table.show(entries)
    entries[0].state, entries[0].attempts, entries[0].note = WAITING, 2, "killed by SIGKILL"
    table.show(entries)
    name = entries[0].run.name
    assert stream.getvalue() == f"{name}: running\n{name}: to be started again (killed by SIGKILL)\n"


def test_on_a_terminal_the_table_is_redrawn_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "6")
    entries = [Entry(run) for run in plan(tmp_path, "seeds=0,1,2,3,4,5,6")]
    for entry in entries[1:]:
        entry.state, entry.stage, entry.progress = RUNNING, "train", Progress(110, 160, 5.0, -1.0)
    stream = Terminal()
    table = Table(stream)
    table.show(entries)
    first = stream.getvalue()
    assert "7 runs: 0 done, 6 running, 1 waiting, 0 failed" in first
    assert "step 110/160  5.0 steps/s  ETA 0:00:10" in first and "and 4 more" in first
    lines = first.splitlines()
    assert len(lines) < 6 and all(len(line) < 100 for line in lines)
    table.show(entries)
    assert stream.getvalue() == first + f"\x1b[{len(lines)}F\x1b[J" + first
