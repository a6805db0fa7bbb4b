"""Sweeps as they are typed: all finish, whatever is killed meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest
from sweep_support import CATCH, REPOSITORY, WANTED, wait_for

import sweep
from run_files.manifest import read_json
from sweeping.options import parse_options
from sweeping.runs import SweepRun, plan_runs
from utils import UserError

SHORT = ["BasicSettings.device=cpu", "BasicSettings.NumThreads=1", "JointTrainAgent.LogEverySteps=5"]
SHORT += ["Evaluation.NumEpisodes=1", "Evaluation.NumEnvs=1", "report=false"]
LEARNING = [f"JointTrainAgent.SampleMaxSteps={WANTED}", "JointTrainAgent.SaveEverySteps=20"]


@pytest.fixture
def own_signals() -> Iterator[None]:
    """The sweep sets handlers; the tests keep theirs."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_a_folder_that_cannot_be_written_to_is_said(
    tmp_path: Path, own_signals: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "carry_out", lambda *_: pytest.fail("something runs"))
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "sweep").touch()
    with pytest.raises(UserError, match=r"cannot write .*outputs/sweep/logs"):
        sweep.main([CATCH, "configs=STORM-catch", f"storage={tmp_path}"])


def test_a_run_to_its_score_and_report_and_nothing_the_second_time(
    tmp_path: Path, own_signals: None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    words = [CATCH, "configs=STORM-catch", f"storage={tmp_path}"]
    words += [*SHORT, "JointTrainAgent.SampleMaxSteps=20"]
    assert sweep.main(words) == 0
    printed, said = capfd.readouterr()
    (run,) = plan_runs(parse_options(words))
    lines = [line for line in said.splitlines() if line != f"{run.name}: trained"]  # seldom seen: it is short
    assert lines == [
        *(f"{run.name}: {state}" for state in ("training", "evaluating", "evaluated")),
        "1 run: 1 evaluated",
    ]
    assert printed.startswith(f"{run.name}  step 20: mean return ")
    assert "1/1" in run.log("evaluate").read_text()
    stamp = run.directory.status_file.stat().st_mtime_ns
    monkeypatch.setattr(
        sweep.subprocess, "run", lambda command: asked.append(command) or Namespace(returncode=0)
    )
    assert sweep.main([*words, "report=true"]) == 0
    assert "evaluated (done before, skipped)" in capfd.readouterr().err
    assert asked[0][1:] == [f"{REPOSITORY}/report.py", "--outputs", f"{tmp_path}/outputs", run.name]
    assert stamp == run.directory.status_file.stat().st_mtime_ns


def start_sweep(*words: str) -> subprocess.Popen[str]:
    """The command as a user types it; what it says goes to one pipe."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "tests"), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, "sweep.py", *words], cwd=REPOSITORY, env=environment, **pipes)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=900)
    return process.returncode, output


def trainer_of(run: SweepRun) -> int:
    """The process that has the run, as its lock file says."""
    return int(run.directory.lock_file.read_text().split()[1])  # "process 123 on host …"


def steps_are_those_of_one_run(run: SweepRun) -> bool:
    """Whether every fifth step was logged once: nothing repeated after a restart, nothing left out."""
    lines = [json.loads(line) for line in run.directory.metrics_file.read_text().splitlines()]
    logged = [line["step"] for line in lines if "time/steps_per_s" in line]
    return logged == list(range(5, run.config.JointTrainAgent.SampleMaxSteps + 1, 5))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a Ray cluster of this machine alone."""
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray = str(Path(sys.executable).with_name("ray"))
    folder = f"/tmp/ray-{port}"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    start = [ray, "start", "--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder}"]
    start += ["--node-ip-address=127.0.0.1", "--disable-usage-stats", "--object-store-memory=100000000"]
    subprocess.run(start, check=True)
    yield f"127.0.0.1:{port}"
    listing = subprocess.run(["pgrep", "-f", folder], capture_output=True, text=True).stdout
    for process in map(int, listing.split()):
        os.kill(process, signal.SIGKILL)
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("where", ["here", "cluster"])
def test_a_grid_survives_the_death_of_processes(
    tmp_path: Path, where: str, request: pytest.FixtureRequest
) -> None:
    words = [CATCH, "seeds=0,1", "configs=STORM-catch", f"storage={tmp_path}", "evaluate=false"]
    words += [*SHORT, *LEARNING]
    address = f"address={request.getfixturevalue('cluster') if where == 'cluster' else 'local'}"
    runs = plan_runs(parse_options(words))
    process = start_sweep(*words, address)
    wait_for(lambda: runs[0].saved_step() >= 220, seconds=600)
    before = read_json(runs[0].directory.status_file)
    os.kill(trainer_of(runs[0]), signal.SIGKILL)
    code, said = finish(process)
    assert code == 0 and "2 runs: 2 trained" in said, said
    assert all(run.is_done("train") and steps_are_those_of_one_run(run) for run in runs)
    assert f"{runs[0].name}: training, attempt 2 (killed by SIGKILL)" in said
    assert read_json(runs[0].directory.status_file)["started"] == before["started"]
    resumed_at = int(
        runs[0].log("train").read_text().split(f"continuing {runs[0].name} at step ")[1].split()[0]
    )
    assert resumed_at >= before["finished_step"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_impossible_games_are_reported_and_the_rest_is_trained_and_evaluated(tmp_path: Path) -> None:
    dies, wrong = "stub_envs:StubStartDies-v0", "stub_envs:StubMultiBinary-v0"
    words = [f"{CATCH},{dies},{wrong}", "configs=STORM-catch", f"storage={tmp_path}", "retries=1"]
    words += [*SHORT, "JointTrainAgent.SampleMaxSteps=40", "JointTrainAgent.SaveEverySteps=20"]
    code, said = finish(start_sweep(*words))
    assert code == 1 and "3 runs: 1 evaluated, 2 failed" in said, said
    failures = [line for line in said.splitlines() if line.startswith("failed: ")]
    for line, reason, tries in zip(failures, ("exit code 3", "supported are Discrete"), (2, 1), strict=True):
        path = Path(line.rpartition("see ")[2])
        assert reason in line and path.read_text().count("=== ") == tries
    evaluate = [
        "evaluate",
        CATCH,
        "configs=STORM-catch",
        f"storage={tmp_path}",
        "report=false",
        "-num_episodes",
    ]
    code, said = finish(start_sweep(*evaluate, "1"))
    assert code == 0 and "evaluated (done before, skipped)" in said
    code, said = finish(start_sweep(*evaluate, "2"))
    assert code == 0 and "evaluating" in said and "over 2 episodes" in said


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("where", ["here", "cluster"])
def test_a_stopped_sweep_leaves_saved_runs_that_the_same_command_continues(
    tmp_path: Path, number: signal.Signals, where: str, request: pytest.FixtureRequest
) -> None:
    words = [CATCH, "seeds=0,1", "configs=STORM-catch", f"storage={tmp_path}", "evaluate=false"]
    words += [*SHORT, *LEARNING, f"cpus_per_run={os.cpu_count()}"]  # one at a time
    words += [f"address={request.getfixturevalue('cluster') if where == 'cluster' else 'local'}"]
    runs = plan_runs(parse_options(words))
    process = start_sweep(*words)
    wait_for(lambda: runs[0].saved_step() >= 200, seconds=600)
    trainer = trainer_of(runs[0])
    process.send_signal(number)
    code, said = finish(process)
    wait_for(lambda: not Path(f"/proc/{trainer}").exists())
    if (where, number) != ("cluster", signal.SIGKILL):  # Ray kills what a dead sweep leaves
        assert read_json(runs[0].directory.status_file)["status"] == "stopped"
    assert not runs[1].directory.outputs.exists()
    if number != signal.SIGKILL:
        assert code == 75 and "2 stopped" in said and "the same command continues" in said
    code, said = finish(start_sweep(*words))
    assert code == 0 and "2 runs: 2 trained" in said
    assert all(steps_are_those_of_one_run(run) for run in runs)
    assert f"continuing {runs[0].name} at step" in runs[0].log("train").read_text()
