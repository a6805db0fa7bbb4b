"""Which runs of a sweep run again, which are given up, and what the table says."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from sweep_support import WANTED, plan, write_status

from sweeping.local import Job
from sweeping.runs import SweepRun
from sweeping.scheduler import (
    EVALUATED,
    EVALUATING,
    FAILED,
    STOPPED,
    TRAINED,
    TRAINING,
    WAITING,
    Entry,
    Table,
    carry_out,
)

End = tuple[int, str, int | str]  # step saved, status, exit code


class ScriptedEngine:
    """Ends the attempts of each run as told, one after the other."""

    places = 1

    def __init__(self, script: dict[str, list[End]], runs: list[SweepRun]) -> None:
        self.script = script
        self.runs = {run.name: run for run in runs}
        self.started: list[tuple[str, str]] = []
        self.stopped = False

    def run(self, job: Job) -> int | str:
        name = Path(job.log).stem.removesuffix("_evaluation")
        self.started.append((Path(job.command[0]).stem, name))
        step, status, code = self.script[name].pop(0)
        if step:
            write_status(self.runs[name], status, step)
        return code

    def stop(self) -> None:
        self.stopped = True


def sweep(
    runs: list[SweepRun], *ends: list[End], retries: int = 2, stopping: bool = False
) -> tuple[list[Entry], ScriptedEngine]:
    """Where runs stand whose attempts end so."""
    engine = ScriptedEngine({run.name: end for run, end in zip(runs, ends, strict=True)}, runs)
    entries = [Entry(run) for run in runs]
    carry_out(entries, engine, retries, lambda: stopping and bool(engine.started), lambda: None)
    return entries, engine


def attempts(folder: Path, *ends: End, retries: int = 2) -> tuple[Entry, int]:
    """One run whose attempts end so: where it stands then, and how many there were."""
    runs = plan(folder, f"JointTrainAgent.SampleMaxSteps={WANTED}", "evaluate=false")
    entries, engine = sweep(runs, list(ends), retries=retries)
    return entries[0], len(engine.started)


def test_a_run_that_dies_is_started_again_by_the_same_command(tmp_path: Path) -> None:
    entry, started = attempts(tmp_path, (40, "running", -9), (80, "stopped", 75), (WANTED, "finished", 0))
    assert entry.state == TRAINED and started == 3


def test_a_run_that_comes_further_may_die_as_often_as_it_likes(tmp_path: Path) -> None:
    deaths = [(step, "running", "its node died") for step in range(20, 200, 20)]
    entry, started = attempts(tmp_path, *deaths, (WANTED, "finished", 0), retries=1)
    assert entry.state == TRAINED and started == len(deaths) + 1


@pytest.mark.parametrize("code", [1, -9, 75, "its node died", 0])
def test_a_run_that_does_not_come_further_is_given_up(tmp_path: Path, code: int | str) -> None:
    entry, started = attempts(tmp_path, (20, "running", code), *[(0, "", code)] * 3)
    assert entry.state == FAILED and entry.note
    assert started == 3  # 20 steps, then nothing new twice: the third death in a row


def test_no_retries_means_one_attempt(tmp_path: Path) -> None:
    entry, started = attempts(tmp_path, (20, "running", -9), retries=0)
    assert entry.state == FAILED and "SIGKILL" in entry.note and started == 1


def test_a_user_error_is_not_tried_again_and_its_line_and_log_are_named(tmp_path: Path) -> None:
    (run,) = plan(tmp_path)
    run.log("train").parent.mkdir(parents=True)
    run.log("train").write_text("=== a host: python train.py\n 3 of 9 steps\rerror: no such thing\n\n")
    entry, started = attempts(tmp_path, (0, "", 2))
    assert entry.state == FAILED and started == 1
    assert "error: no such thing" in entry.note and str(run.log("train")) in entry.note


def test_one_failing_run_does_not_stop_the_rest_and_evaluation_follows(tmp_path: Path) -> None:
    runs = plan(tmp_path, "seeds=0,1", f"JointTrainAgent.SampleMaxSteps={WANTED}")
    bad, good = (run.name for run in runs)
    entries, engine = sweep(runs, [(0, "", 2)], [(WANTED, "finished", 0), (0, "", 0)])
    assert [entry.state for entry in entries] == [FAILED, EVALUATED]
    assert engine.started == [("train", bad), ("train", good), ("eval", good)]


def test_when_asked_to_stop_nothing_is_started_again(tmp_path: Path) -> None:
    runs = plan(tmp_path, "seeds=0,1", f"JointTrainAgent.SampleMaxSteps={WANTED}")
    entries, engine = sweep(runs, [(40, "stopped", 75)], [], stopping=True)
    assert [entry.state for entry in entries] == [STOPPED] * 2
    assert engine.stopped and len(engine.started) == 1
    assert "saved at step 40" in entries[0].note


def test_what_is_done_is_not_started(tmp_path: Path) -> None:
    (run,) = plan(tmp_path, f"JointTrainAgent.SampleMaxSteps={WANTED}", "evaluate=false")
    write_status(run, "finished", WANTED)
    done = Entry(run)
    assert done.is_over and done.state == TRAINED and "skipped" in done.note


# --- what is said


def test_each_change_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [Entry(run) for run in plan(tmp_path, "seeds=0,1")]
    table = Table()
    table.show(entries)
    assert capsys.readouterr().err == ""
    entries[0].state = TRAINING
    for _ in range(3):
        table.show(entries)
    entries[0].attempts, entries[0].note = 2, "killed by SIGKILL"
    table.show(entries)
    name = entries[0].run.name
    said = f"{name}: training\n{name}: training, attempt 2 (killed by SIGKILL)\n"
    assert capsys.readouterr().err == said


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_also_counts_states_and_shows_how_far_training_and_evaluation_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("COLUMNS", "110")
    states = (EVALUATED, TRAINED, TRAINING, EVALUATING, WAITING)
    entries = [Entry(*each) for each in zip(plan(tmp_path, "seeds=0,1,2,3,4"), states, strict=True)]
    for entry, stage in ((entries[2], "train"), (entries[3], "evaluate")):
        entry.run.log(stage).parent.mkdir(parents=True, exist_ok=True)
        entry.run.log(stage).write_text(f"=== a line\n 2 of 4 {stage}\r 3 of 4 {stage}{'.' * 99}")
    table = Table()
    table.show(entries)
    shown = stream.getvalue()
    assert "5 runs: 1 waiting, 1 training, 1 trained, 1 evaluating, 1 evaluated" in shown
    assert f"{entries[2].run.name}  training  3 of 4 train." in shown
    assert f"{entries[3].run.name}  evaluating  3 of 4 evaluate." in shown and "." * 80 not in shown
    entries[3].state = EVALUATED
    table.show(entries)  # which takes its line away
    stream.truncate(0)
    table.show(entries)
    assert "3 of 4 evaluate" not in stream.getvalue() and "2 evaluated" in stream.getvalue()
    table.close()
    assert stream.getvalue().endswith("\r")
