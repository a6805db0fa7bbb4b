"""Runs that are killed, stopped, damaged or out of disk, and what becomes of them."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kill_and_compare
import numpy as np
import pytest
import torch
from kill_and_compare import differences
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import GIT_STORM, REPOSITORY, SMALL, STEPS, Result, in_folder, metrics, train, weights

import utils
from compute import threads
from evaluation.policies import EvaluationPolicy
from run_files.states import StateStore
from sub_models.batch import Batch
from training import run as training_run
from training.run import StopRequest, TrainingRun
from utils import UserError

NOT_FINISHED = 75
OFTEN = "JointTrainAgent.SaveEverySeconds=1e-9"  # a state after every step
EVALUATE = ("JointTrainAgent.EvalEverySteps=40", "JointTrainAgent.SaveEverySteps=40")
SLOW_KILLS = 8


class Killed(BaseException):
    """Stands for the death of the process: nothing handles it."""


def die() -> None:
    raise Killed


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], Any]) -> None:
    """Do something once, in the loop, when a run has come to `step`."""
    original, done = TrainingRun.record, []

    def record(self: TrainingRun, result: Any) -> None:
        original(self, result)
        if self.step >= step and not done:
            done.append(True)
            action()

    monkeypatch.setattr(TrainingRun, "record", record)


def interrupted(folder: Path, name: str, step: int, number: int, *overrides: str) -> Result:
    """train.py that receives a signal at `step`."""
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, step, lambda: os.kill(os.getpid(), number))
        return train(folder, name, *overrides)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an uninterrupted run "run"."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(folder, "run").code == 0
    return folder


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the same run was stopped at step 70; it has the states of steps 50 and 70."""
    folder = tmp_path_factory.mktemp("stopped")
    assert interrupted(folder, "run", 70, signal.SIGTERM).code == NOT_FINISHED
    return folder


@pytest.fixture
def stopped(stopped_once: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(stopped_once, tmp_path, dirs_exist_ok=True)
    return tmp_path


# --- a run that was killed ends as one that was not


def die_at_random(patch: pytest.MonkeyPatch, moments: random.Random, longest: int) -> None:
    """Let one of the next calls that write, flush or rename a file, or take a step, be the last one."""
    left = [moments.randint(1, longest)]

    def deadly(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **settings: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return original(*arguments, **settings)

        return call

    patch.setattr(utils.os, "fsync", deadly(os.fsync))
    patch.setattr(utils.os, "replace", deadly(os.replace))
    patch.setattr(TrainingRun, "record", deadly(TrainingRun.record))


@pytest.mark.parametrize(
    ("deaths", "overrides"),
    [
        (8, []),
        (5, [GIT_STORM, "BasicSettings.ReleaseQuirks=true"]),
        (2, ["JointTrainAgent.NumEnvs=3"]),
        (3, [GIT_STORM, "JointTrainAgent.EvalEverySteps=40", "BasicSettings.Precision=bfloat16"]),
        pytest.param(
            2,
            [GIT_STORM, "BasicSettings.Precision=bfloat16", "BasicSettings.Compile=always"],
            marks=[pytest.mark.slow, pytest.mark.timeout(1800)],
        ),
    ],
)
def test_killed_anywhere_and_resumed_equals_uninterrupted(
    tmp_path: Path, deaths: int, overrides: list[str]
) -> None:
    moments = random.Random(1)
    assert train(tmp_path, "run", *overrides).code == 0
    again = tmp_path / "again"
    again.mkdir()
    for _ in range(deaths):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            die_at_random(
                patch, moments, longest=2 * 12 * STEPS // deaths // (3 if "=3" in str(overrides) else 1)
            )
            pytest.fail(f"it was not killed: {train(again, 'run', OFTEN, *overrides)}")
    assert train(again, "run", OFTEN, *overrides).code == 0
    assert differences(tmp_path, again) == []


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an uninterrupted run that was evaluated at 40, 80 and 120."""
    folder = tmp_path_factory.mktemp("evaluated")
    assert train(folder, "run", *EVALUATE).code == 0
    return folder


@pytest.mark.parametrize("number", [2, 3])  # the last one comes with the last step
def test_a_stop_does_not_wait_for_an_evaluation_which_is_made_later(
    evaluated: Path, tmp_path: Path, number: int
) -> None:
    acted: list[EvaluationPolicy] = []
    original = EvaluationPolicy.act

    def act(self: EvaluationPolicy, observation: np.ndarray) -> np.ndarray:
        acted.append(self)
        if len({id(policy.streams) for policy in acted}) == number and acted.count(self) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, observation)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EvaluationPolicy, "act", act)
        result = train(tmp_path, "run", *EVALUATE)
    step, played = 40 * number, (number - 1) * 2 * 25 + 3
    assert result.code == NOT_FINISHED and f"stopped by SIGTERM at step {step}" in result.err
    assert len(acted) == played  # the evaluations before, and three steps
    result = train(tmp_path, "run", *EVALUATE)
    assert result.code == 0 and f"step {step}: evaluated" in result.err
    assert differences(evaluated, tmp_path) == []


def test_a_run_that_is_to_end_where_its_evaluation_was_put_off_saves_its_weights(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 40, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train(tmp_path, "run", *EVALUATE).code == NOT_FINISHED
    result = train(tmp_path, "run", *EVALUATE, "JointTrainAgent.SampleMaxSteps=40")
    assert result.code == 0 and "step 40: evaluated" in result.err
    assert weights(tmp_path, "run", 40)


def test_a_run_whose_evaluation_fails_is_saved(evaluated: Path, tmp_path: Path) -> None:
    def failing(*arguments: object) -> None:
        raise UserError("3 environment faults in a row")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "evaluate", failing)
        result = train(tmp_path, "run", *EVALUATE)
        shutil.copytree(tmp_path, tmp_path / "again")
        assert train(tmp_path / "again", "run", *EVALUATE, "JointTrainAgent.EvalEverySteps=0").code == 0
    assert result.code == 2 and result.error == "3 environment faults in a row"
    result = train(tmp_path, "run", *EVALUATE)
    assert result.code == 0 and "continuing run at step 40" in result.err
    assert differences(evaluated, tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("config", ["STORM-tiny", "GITSTORM-tiny"])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_killed_processes_end_identically(
    config: str, num_envs: int, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--config",
        config,
        "--num-envs",
        str(num_envs),
        "--kills",
        str(SLOW_KILLS),
        "--steps",
        "240",
    ]
    assert kill_and_compare.main(arguments) == 0
    assert "identical" in capsys.readouterr().out


def test_a_killed_process_ends_identically(capsys: pytest.CaptureFixture[str]) -> None:
    assert kill_and_compare.main(["--kills=3", f"--steps={STEPS}", "--seed=1", *SMALL]) == 0
    assert "identical" in capsys.readouterr().out


def test_the_comparison_sees_differences(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "other")
    assert train(tmp_path / "other", "run", "BasicSettings.Restart=true", "BasicSettings.Seed=1").code == 0
    found = differences(whole, tmp_path / "other")
    assert any(line.startswith("ckpt/") for line in found) and any("metrics" in line for line in found)
    assert any(line.startswith("state.rows") for line in found)


# --- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_not_finished(whole: Path, tmp_path: Path, number: signal.Signals) -> None:
    result = interrupted(tmp_path, "run", 70, number)
    assert result.code == NOT_FINISHED and f"stopped by {number.name} at step 70, saved" in result.err
    again = train(tmp_path, "run")
    assert again.code == 0 and "continuing run at step 70" in again.err
    assert differences(whole, tmp_path) == []


ENDING = {
    "HUP",
    "QUIT",
    "USR1",
    "USR2",
    "XCPU",
    "ALRM",
    "VTALRM",
    "PROF",
    "IO",
    "PWR",
}  # a process by default


@pytest.mark.parametrize("name", sorted(ENDING & {number.name[3:] for number in signal.Signals}))
def test_a_queue_may_ask_by_any_signal(name: str) -> None:
    number = getattr(signal, f"SIG{name}")
    with in_folder(Path()):  # puts the handlers back
        stop = StopRequest()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("training.run.silence", lambda only_terminal: None)
            os.kill(os.getpid(), number)
        assert stop.signal == f"SIG{name}"
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        assert StopRequest().signal is None and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_a_closed_terminal_saves(tmp_path: Path) -> None:
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(tmp_path)
        command = [str(REPOSITORY / "train.py"), *SMALL, "BasicSettings.n=run", "BasicSettings.silent=false"]
        os.execv(sys.executable, [sys.executable, *command, "JointTrainAgent.SampleMaxSteps=100000"])
    said = b""
    while b"100000" not in said.rpartition(b"run run:")[2]:  # the progress bar
        said += os.read(terminal, 1_000)
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == NOT_FINISHED
    written = json.loads((tmp_path / "outputs" / "run" / "run.json").read_text())
    assert written["status"] == "stopped"
    assert StateStore(tmp_path / "outputs" / "run" / "state").load().step == written["finished_step"]


def test_a_signal_before_the_first_step_saves(whole: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        original = TrainingRun.write_status

        def write_status(self: TrainingRun, status: str) -> None:
            original(self, status)
            os.kill(os.getpid(), signal.SIGTERM)

        patch.setattr(TrainingRun, "write_status", write_status)
        assert train(tmp_path, "run").code == NOT_FINISHED
    assert train(tmp_path, "run").code == 0
    assert differences(whole, tmp_path) == []


def test_a_second_interrupt_leaves_at_once(whole: Path, tmp_path: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        at_step(patch, 70, twice)
        train(tmp_path, "run")
    assert "continuing run at step 50" in train(tmp_path, "run").err
    assert differences(whole, tmp_path) == []


# --- what can be lost, and what can be changed


def test_by_default_five_minutes_are_lost_at_most(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(TrainingRun, "seconds_since_save", lambda run: 300.0)
        at_step(patch, 30, die)
        train(tmp_path, "run", "JointTrainAgent.SaveEverySteps=1000")
    assert StateStore(tmp_path / "outputs" / "run" / "state").load().step == 29


@pytest.mark.parametrize(("seconds", "step"), [("0", 0), ("1e-9", 49)])
def test_states_between_checkpoints_bound_what_is_lost(tmp_path: Path, seconds: str, step: int) -> None:
    settings = [f"JointTrainAgent.SaveEverySeconds={seconds}", "JointTrainAgent.SaveEverySteps=1000"]

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        at_step(patch, 50, die)
        train(tmp_path, "run", *settings)
    assert StateStore(tmp_path / "outputs" / "run" / "state").load().step == step


def test_harmless_changes_are_applied_and_noted(whole: Path, stopped: Path) -> None:
    result = train(stopped, "run", "Evaluation.NumEpisodes=7", "JointTrainAgent.MaxBadUpdates=9")
    assert result.code == 0
    assert "Evaluation.NumEpisodes: 2 → 7" in result.err
    assert "JointTrainAgent.MaxBadUpdates: 20 → 9" in result.err
    assert "NumEpisodes: 7" in (stopped / "outputs" / "run" / "config.yaml").read_text()
    assert differences(whole, stopped) == []


def test_a_resumed_run_keeps_its_number_of_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    automatic, used = "BasicSettings.NumThreads=0", []
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setattr(threads, "SMALL", 1)
    assert "CPU threads: 2" in interrupted(tmp_path, "run", 3, signal.SIGTERM, automatic).err
    torch.set_num_threads(1)  # as on another machine
    at_step(monkeypatch, 5, lambda: used.append(torch.get_num_threads()))
    assert train(tmp_path, "run", automatic, "JointTrainAgent.SampleMaxSteps=6").code == 0
    assert used == [2]
    torch.set_num_threads(before)


def test_a_finished_run_can_be_extended(tmp_path: Path) -> None:
    for name, steps in (("long", [140]), ("extended", [STEPS, 140])):
        for each in steps:
            assert train(tmp_path, name, f"JointTrainAgent.SampleMaxSteps={each}").code == 0
    first, second = (weights(tmp_path, name, 140) for name in ("long", "extended"))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("said_so", [True, False])
def test_a_run_that_is_to_end_before_where_it_is_is_finished_there(stopped: Path, said_so: bool) -> None:
    """It was stopped, or killed before it said anything."""
    if not said_so:
        (stopped / "outputs" / "run" / "manifest.json").unlink()
    for _ in range(2):
        assert train(stopped, "run", "JointTrainAgent.SampleMaxSteps=60").code == 0
        assert json.loads((stopped / "outputs" / "run" / "run.json").read_text())["status"] == "finished"
        assert weights(stopped, "run", 70)


def test_a_run_that_was_moved_says_so_and_keeps_both(whole: Path, stopped: Path) -> None:
    status = stopped / "outputs" / "run" / "run.json"
    before = json.loads(status.read_text())
    status.write_text(re.sub(r'"torch": "[^"]+"', '"torch": "2.5.0"', status.read_text()))
    result = train(stopped, "run")
    assert result.code == 0 and f"torch was 2.5.0, is {version('torch')}" in result.err
    after = json.loads(status.read_text())
    assert all(after[clock] > before[clock] > 0 for clock in ("elapsed_s", "cpu_s"))
    versions = after["versions"]
    assert versions["torch"] == f"2.5.0 + {version('torch')}"
    assert differences(whole, stopped) == []
    assert "was moved" not in train(stopped, "run", "JointTrainAgent.SampleMaxSteps=125").err


def test_restart_archives_the_run(whole: Path, stopped: Path) -> None:
    old = (stopped / "outputs" / "run" / "ckpt" / "agent_50.pth").read_bytes()
    for wrong in ("BasicSettings.env_name=ALE/None-v5", "BasicSettings.Loggers=tensrboard"):
        refused = train(stopped, "run", "BasicSettings.Restart=true", wrong)
        assert refused.code == 2 and not (stopped / "outputs" / "run.archived-1").exists()
    assert train(stopped, "run", "BasicSettings.Restart=true").code == 0
    assert differences(whole, stopped) == []
    assert (stopped / "outputs" / "run.archived-1" / "ckpt" / "agent_50.pth").read_bytes() == old
    assert (stopped / "runs" / "run.archived-1").is_dir()


def test_tensorboard_shows_each_step_once(stopped: Path) -> None:
    kept = stopped / "outputs" / "run" / "state"
    shutil.copytree(kept, stopped / "earlier state")
    assert interrupted(stopped, "run", 95, signal.SIGTERM).code == NOT_FINISHED
    shutil.rmtree(kept)
    (stopped / "earlier state").rename(kept)  # as if it had died before it could save
    assert train(stopped, "run").code == 0
    events = EventAccumulator(str(stopped / "runs" / "run"))
    events.Reload()
    steps = [event.step for event in events.Scalars("replay_buffer/length")]
    assert steps == [line["step"] for line in metrics(stopped, "run") if "replay_buffer/length" in line]
    assert steps == sorted(set(steps)) and steps[-1] == STEPS
    assert [event.step for event in events.Tensors("config/text_summary")] == [0]


# --- damage


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: data[:-200] + b"!" + data[-199:]]
)
@pytest.mark.parametrize("kind", ["state_", "rows_", "manifest_"])
def test_a_damaged_newest_state_is_named_and_the_one_before_used(
    whole: Path, stopped: Path, kind: str, damage: Callable[[bytes], bytes]
) -> None:
    folder = stopped / "outputs" / "run" / "state"
    newest = max(folder.glob(f"{kind}*"), key=lambda path: int(path.stem.split("_")[-1]))
    newest.write_bytes(damage(newest.read_bytes()))
    result = train(stopped, "run")
    assert result.code == 0, result.error
    assert newest.name in result.err and "continuing run at step 50" in result.err
    assert differences(whole, stopped) == []


def test_half_written_files_of_a_killed_save_are_no_obstacle(whole: Path, stopped: Path) -> None:
    folder = stopped / "outputs" / "run"
    leftovers = [folder / "state" / ".state_9999.pt.x.tmp", folder / "ckpt" / ".agent_70.pth.x.tmp"]
    leftovers.append(folder / "state" / "state_9998.pt")
    for path in leftovers:
        path.write_bytes(b"half")
    assert train(stopped, "run").code == 0
    assert not any(path.exists() for path in leftovers)
    assert differences(whole, stopped) == []


def test_a_full_disk_stops_with_one_line_and_loses_nothing(whole: Path, stopped: Path) -> None:
    limit = 20_000  # bytes of one file, as a disk with that much left
    states = (stopped / "outputs" / "run" / "state").glob("state_*")
    assert min(path.stat().st_size for path in states) > limit
    result = subprocess.run(
        [sys.executable, str(REPOSITORY / "train.py"), *SMALL, "BasicSettings.n=run"],
        cwd=stopped,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert result.returncode == 2 and "Traceback" not in result.stderr
    complaint = result.stderr.splitlines()[-1]
    assert complaint.startswith("error: ") and "outputs/run" in complaint and "File too large" in complaint
    assert "continuing run at step 70" in train(stopped, "run").err
    assert differences(whole, stopped) == []


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    first = kill_and_compare.Process(tmp_path, [*SMALL, "JointTrainAgent.SampleMaxSteps=100000"], 0)
    try:
        first.wait_until(first.is_training)
        second = train(tmp_path, "run", "JointTrainAgent.SampleMaxSteps=100000")
        assert second.code == 2
        assert str(first.process.pid) in second.error and socket.gethostname() in second.error
    finally:
        first.process.kill()
        first.process.wait()
    assert train(tmp_path, "run", "JointTrainAgent.SampleMaxSteps=1").code == 0


# --- numbers that go wrong


def test_updates_that_stay_bad_stop_the_run_with_a_report(tmp_path: Path) -> None:
    bad = ["Models.WorldModel.LearningRate=1e30", "JointTrainAgent.MaxBadUpdates=5"]
    result = train(tmp_path, "run", *bad, "JointTrainAgent.SaveEverySteps=60")
    assert result.code == 2 and "WorldModel" in result.error
    assert "WorldModel/total_loss" in result.error and "updates in a row were not finite" in result.error
    saved = StateStore(tmp_path / "outputs" / "run" / "state").load()
    assert saved.step == 60 and weights(tmp_path, "run", 60)  # the first log with five bad updates


def test_one_bad_batch_changes_nothing_but_its_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = TrainingRun.sample, []

    def sample(self: TrainingRun, purpose: str, *sizes: int) -> Batch:
        batch = original(self, purpose, *sizes)
        calls.append(purpose)
        if purpose == "replay" and calls.count("replay") == 3:
            batch = Batch(batch.observation, batch.action, batch.reward * float("nan"), batch.termination)
        return batch

    monkeypatch.setattr(TrainingRun, "sample", sample)
    assert train(tmp_path, "run").code == 0
    counts = [
        line["WorldModel/bad_updates"]
        for line in metrics(tmp_path, "run")
        if "WorldModel/bad_updates" in line
    ]
    assert counts[-1] == 1.0
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path, "run").values())


# --- environments that fail


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Settings of a run whose environment on seed 1 misbehaves at its fourth step."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1]))
    return ["BasicSettings.Seed=0", "JointTrainAgent.NumEnvs=2", "JointTrainAgent.SampleMaxSteps=60"]


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ("Dies", "died (exit code 3)"),
        ("Interrupts", "KeyboardInterrupt"),
        ("Hangs", "did not answer in time"),
        ("Nan", "finite"),
    ],
)
def test_a_failing_environment_is_logged_counted_and_replaced(
    tmp_path: Path, stub: list[str], trouble: str, words: str
) -> None:
    timeout = "Environment.StepTimeout=3" if trouble == "Hangs" else "Environment.StepTimeout=0"
    result = train(tmp_path, "run", f"BasicSettings.env_name=stub_envs:Stub{trouble}-v0", timeout, *stub)
    assert result.code == 0, result.error
    assert words in result.err and "began new episodes on seeds" in result.err
    assert metrics(tmp_path, "run")[-1].get("environment/faults", 1.0) == 1.0
    logged = [line["environment/faults"] for line in metrics(tmp_path, "run") if "environment/faults" in line]
    assert logged and set(logged) == {1.0}
    lengths = {
        line["replay_buffer/length"] for line in metrics(tmp_path, "run") if "replay_buffer/length" in line
    }
    assert lengths == {20.0, 40.0, 60.0}  # the row in flight was dropped


def test_too_many_faults_in_a_row_stop_the_run_saved(tmp_path: Path, stub: list[str]) -> None:
    settings = ["BasicSettings.env_name=stub_envs:StubDies-v0", "Environment.MaxFaults=1", *stub]
    result = train(tmp_path, "run", *settings)
    assert result.code == 2 and "1 environment faults in a row" in result.error
    assert StateStore(tmp_path / "outputs" / "run" / "state").load().step == 6
    assert train(tmp_path, "run", *settings).code == 0
