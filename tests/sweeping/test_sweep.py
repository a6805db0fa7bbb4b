"""Sweeps on Ray, as they are typed: all finish, whatever is killed meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sweep_support import CATCH, REPOSITORY, WANTED, wait_for

import sweep
from sweeping.options import parse_options
from sweeping.plan import plan_runs
from sweeping.runs import SweepRun
from utils import UserError


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The scripts, with requirements that are met and a sweep.py that prints its arguments."""
    for name in ("sweep.sh", "eval_manager.sh", "setup.sh"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    shutil.copytree(REPOSITORY / "config_files", tmp_path / "config_files")
    for name in ("requirements.txt", "requirements-sweep.txt"):
        (tmp_path / name).write_text("ray>=1\n")
    (tmp_path / "sweep.py").write_text("import os, sys; print(os.getpid(), *sys.argv[1:], sep='\\n')")
    return tmp_path


def call(folder: Path, script: str, *words: str, **variables: str) -> tuple[int, list[str]]:
    """The script's process, and its lines of output."""
    environment = {**os.environ, "STORM_PYTHON": sys.executable, **variables}
    command = ["bash", str(folder / script), *words]
    with subprocess.Popen(command, cwd="/", env=environment, stdout=subprocess.PIPE, text=True) as process:
        return process.pid, process.communicate(timeout=120)[0].splitlines()


def test_eval_manager_hands_its_grid_to_the_sweep(copy: Path) -> None:
    variables = {"GAMES": "Pong ALE/Boxing-v5", "SEEDS": "0 1", "CONFIG": "STORM GITSTORM"}
    process, lines = call(copy, "eval_manager.sh", "-greedy", **variables)
    grid_words = ["games=Pong,ALE/Boxing-v5", "seeds=0,1", "configs=STORM,GITSTORM", "-greedy"]
    assert lines == [str(process), "evaluate", f"storage={copy}", *grid_words]


def test_sweep_sh_passes_its_arguments_on_and_has_a_grid_of_its_own(copy: Path) -> None:
    assert os.access(REPOSITORY / "sweep.sh", os.X_OK)
    process, lines = call(copy, "sweep.sh", "evaluate", "games=Pong", "-greedy")
    assert lines == [str(process), f"storage={copy}", "report=true", "evaluate", "games=Pong", "-greedy"]
    assert parse_options(lines[1:]).report
    _, lines = call(copy, "sweep.sh")
    options = parse_options(lines[1:])
    assert len(list(options.grid())) == 4 and len(plan_runs(options)) == 4 and options.evaluate


# --- on Ray


SHORT = ["BasicSettings.device=cpu", "BasicSettings.NumThreads=1", "JointTrainAgent.LogEverySteps=5"]
SHORT += ["Evaluation.NumEpisodes=1", "Evaluation.NumEnvs=1"]


@pytest.fixture
def own_signals() -> Iterator[None]:
    """Ray and the sweep set handlers; the tests keep theirs."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def metrics(run: SweepRun) -> list[dict[str, float]]:
    return [json.loads(line) for line in run.directory.metrics_file.read_text().splitlines()]


def test_two_runs_on_ray_and_nothing_the_second_time(
    tmp_path: Path, own_signals: None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [CATCH, "configs=STORM-catch", "seeds=0,1", f"storage={tmp_path}", "evaluate=false"]
    words += [*SHORT, "cpus_per_run=0.5", "JointTrainAgent.SampleMaxSteps=20"]
    assert sweep.main(words) == 0
    said = capsys.readouterr().err
    runs = plan_runs(parse_options(words))
    assert all(run.is_trained() and metrics(run)[-1]["step"] == 20 for run in runs)
    assert "2 runs: 2 done" in said and all(f"{run.name}: done\n" in said for run in runs)
    stamps = [run.directory.status_file.stat().st_mtime_ns for run in runs]
    assert sweep.main(words) == 0
    said = capsys.readouterr().err
    assert said.count("already trained, skipped") == 2 and "Ray" not in said
    assert stamps == [run.directory.status_file.stat().st_mtime_ns for run in runs]


def test_an_address_where_nothing_answers_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(UserError, match="no Ray cluster answers"):
        sweep.main([CATCH, "configs=STORM-catch", f"address={address}"])


def test_more_than_this_machine_has_is_said(
    tmp_path: Path, own_signals: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sweeping.plan._check_cores", lambda options: None)  # Ray may allow fewer still
    with pytest.raises(UserError, match=r"cpus_per_run=1024.*more than this machine has"):
        sweep.main([CATCH, "configs=STORM-catch", "cpus_per_run=1024"])
    assert not list((tmp_path / "outputs" / "sweep" / "logs").iterdir())


def start_sweep(*words: str) -> subprocess.Popen[str]:
    """The command as a user types it; what it says goes to one pipe."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "tests"), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, "sweep.py", *words], cwd=REPOSITORY, env=environment, **pipes)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=900)
    return process.returncode, output


def train_process(run: SweepRun) -> int:
    """The process that has the run, as its lock file says."""
    return json.loads(run.directory.lock_file.read_text())["pid"]


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])


def state_of(run: SweepRun) -> dict[str, object]:
    return run.directory.read_status()


def steps_are_those_of_one_run(run: SweepRun) -> bool:
    """Whether every fifth step was logged once: nothing repeated after a restart, nothing left out."""
    logged = [line["step"] for line in metrics(run) if "time/steps_per_s" in line]
    return logged == list(range(5, run.config.JointTrainAgent.SampleMaxSteps + 1, 5))


LEARNING = [f"JointTrainAgent.SampleMaxSteps={WANTED}", "JointTrainAgent.SaveEverySteps=20"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_grid_survives_the_death_of_a_process_and_of_a_worker(tmp_path: Path) -> None:
    words = [
        CATCH,
        "seeds=0,1",
        "configs=STORM-catch,GITSTORM-catch",
        f"storage={tmp_path}",
        "evaluate=false",
    ]
    words += [*SHORT, *LEARNING]
    runs = plan_runs(parse_options(words))
    process = start_sweep(*words)
    killed = {}
    for run, victim in ((runs[0], train_process), (runs[1], lambda run: parent_of(train_process(run)))):
        wait_for(lambda run=run: state_of(run).get("finished_step", 0) >= 220, seconds=600)
        killed[run.name] = state_of(run)
        os.kill(victim(run), signal.SIGKILL)
    code, said = finish(process)
    assert code == 0 and "4 runs: 4 done" in said, said
    assert all(run.is_trained() and steps_are_those_of_one_run(run) for run in runs)
    for run in runs[:2]:
        before, log = killed[run.name], run.log("train").read_text()
        assert state_of(run)["started"] == before["started"]
        assert log.count("=== ") == 2 and f"{run.name}: to be started again" in said
        resumed_at = int(log.split(f"continuing {run.name} at step ")[1].split()[0])
        assert resumed_at >= before["finished_step"]
    assert all("continuing" not in run.log("train").read_text() for run in runs[2:])
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    code, said = finish(start_sweep(*words))
    assert code == 0 and said.count("already trained, skipped") == 4 and "Ray" not in said
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_impossible_games_are_reported_and_the_rest_is_trained_and_evaluated(tmp_path: Path) -> None:
    dies, wrong = "stub_envs:StubStartDies-v0", "stub_envs:StubMultiBinary-v0"
    words = [f"{CATCH},{dies},{wrong}", "configs=STORM-catch", f"storage={tmp_path}", "retries=1"]
    words += [*SHORT, "JointTrainAgent.SampleMaxSteps=40", "JointTrainAgent.SaveEverySteps=20"]
    code, said = finish(start_sweep(*words))
    assert code == 1 and "3 runs: 1 done, 0 running, 0 waiting, 2 failed" in said, said
    failures = said.split("\nfailed:\n")[1].splitlines()
    logs = tmp_path / "outputs" / "sweep" / "logs"
    assert [line.split(":")[0].strip() for line in failures] == [
        f"stub_envs_{name}-v0-STORM-catch-seed_0" for name in ("StubStartDies", "StubMultiBinary")
    ]
    for line, reason, tries in zip(failures, ("exit code 3", "supported are Discrete"), (2, 1), strict=True):
        path = logs / f"{line.split(':')[0].strip()}.log"
        assert reason in line and line.endswith(str(path)) and path.read_text().count("=== ") == tries
    table = tmp_path / "outputs" / "eval_result" / "Diagnostic_Catch-v0-STORM-catch-seed_0.csv"
    assert [line.split(",")[0] for line in table.read_text().splitlines()] == ["step", "20", "40"]
    evaluate = ["evaluate", CATCH, "configs=STORM-catch", f"storage={tmp_path}", "-num_episodes"]
    code, said = finish(start_sweep(*evaluate, "1"))
    assert code == 0 and "already evaluated, skipped" in said and "Ray" not in said
    code, said = finish(start_sweep(*evaluate, "2"))
    assert code == 0 and "evaluating" in said and table.read_text().splitlines()[1].split(",")[4] == "2"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_sweep_leaves_saved_runs_that_the_same_command_continues(
    tmp_path: Path, number: signal.Signals
) -> None:
    words = [CATCH, "seeds=0,1", "configs=STORM-catch", f"storage={tmp_path}", "evaluate=false"]
    words += [*SHORT, *LEARNING, f"cpus_per_run={os.cpu_count()}"]  # one at a time
    runs = plan_runs(parse_options(words))
    process = start_sweep(*words)
    wait_for(lambda: runs[0].saved_step() >= 200, seconds=600)
    trainer = train_process(runs[0])
    process.send_signal(number)
    code, said = finish(process)
    wait_for(lambda: not Path(f"/proc/{trainer}").exists())
    assert state_of(runs[0])["status"] == "stopped" and not runs[1].directory.outputs.exists()
    if number != signal.SIGKILL:
        assert code == 75 and "2 stopped" in said and "the same command continues" in said
    code, said = finish(start_sweep(*words))
    assert code == 0 and "2 runs: 2 done" in said
    assert all(steps_are_those_of_one_run(run) for run in runs)
    assert f"continuing {runs[0].name} at step" in runs[0].log("train").read_text()
