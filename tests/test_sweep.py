"""Sweeps: the grid, what is skipped, retried and stopped, and the runs themselves on Ray."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import sweep
from sweeping import worker
from sweeping.options import parse_options
from sweeping.plan import plan_runs
from sweeping.progress import Progress, read_progress
from sweeping.runs import SweepRun
from sweeping.scheduler import DONE, FAILED, RUNNING, STOPPED, WAITING, Entry, Outcome, Sweep
from sweeping.table import Table, describe_progress
from utils import UserError

REPOSITORY = Path(__file__).resolve().parents[1]
CATCH = "games=Diagnostic/Catch-v0"
WANTED = 320


# --- the command line


def grid(*words: str) -> list[tuple[str, int, str]]:
    return list(parse_options(words).grid())


def test_lists_may_stand_in_brackets() -> None:
    plain = grid("games=Boxing,Pong", "seeds=0,1", "configs=STORM,GITSTORM")
    assert plain == grid("games=[Boxing, Pong]", "seeds=[0,1,0]", "configs=[STORM,GITSTORM]")
    assert len(plain) == 8 and plain[:3] == [
        ("Boxing", 0, "STORM"),
        ("Boxing", 0, "GITSTORM"),
        ("Pong", 0, "STORM"),
    ]


def test_atari100k_is_the_26_games() -> None:
    games = parse_options(["games=Pong,atari100k,Freeway"]).games
    assert len(games) == 26 and games[0] == "Pong"


def test_only_evaluating_takes_the_options_of_eval() -> None:
    options = parse_options(["evaluate", "games=Pong", "-num_episodes", "3", "-greedy"])
    assert options.eval_options == ("-num_episodes", "3", "-greedy") and not options.train


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "games= is missing"),
        (["games="], "at least one"),
        (["games=[Pong"], "one bracket"),
        (["game=Pong"], "did you mean 'games'"),
        (["games=Pong", "Seed"], "name=value"),
        (["games=Pong", "-greedy"], "name=value"),
        (["games=Bxing"], "did you mean 'ALE/Boxing-v5'"),
        (["games=no_such_module:Pong-v0"], "no_such_module"),
        (["games=Pong", "configs=STROM"], "did you mean 'STORM'"),
        (["games=Pong", "seeds=-1"], "'-1': must be a whole number"),
        (["games=Pong", "cpus_per_run=0"], "greater than 0"),
        (["games=Pong", "gpus_per_run=2"], "from 0 to 1"),
        (["games=Pong", "retries=x"], "whole number"),
        (["games=Pong", "evaluate=perhaps"], "true or false"),
        (["games=Pong", "storage=/no/such/folder"], "no such folder"),
        (["games=Pong", "Models.Agent.Gama=1"], "did you mean 'Models.Agent.Gamma'"),
        (["games=Pong", "Models.Agent.Gamma=2"], "from 0 to 1"),
        (["games=Pong", "BasicSettings.Seed=1"], "seeds="),
        (["games=Pong", "BasicSettings.Restart=true"], "start over"),
        (["evaluate", "games=Pong", "-run_name=x"], "-run_name"),
        (["evaluate", "games=Pong", "--such"], "--such"),
        (["evaluate", "games=Pong", "Models.Agent.Gamma=0.5"], "saved settings"),
    ],
)
def test_user_errors_are_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "run_sweep", lambda *_: pytest.fail("it started"))
    with pytest.raises(UserError, match=r".+") as raised:
        sweep.main(words)
    assert complaint in str(raised.value) and not list(tmp_path.iterdir())


# --- the runs of a grid


def plan(folder: Path, *words: str) -> list[SweepRun]:
    return plan_runs(parse_options([CATCH, "configs=STORM-catch", f"storage={folder}", *words]))


def write_status(run: SweepRun, status: str, step: int) -> None:
    run.directory.outputs.mkdir(parents=True, exist_ok=True)
    run.directory.status_file.write_text(json.dumps({"status": status, "finished_step": step}))


def write_checkpoints(run: SweepRun, *steps: int) -> None:
    run.directory.checkpoints.mkdir(parents=True, exist_ok=True)
    for step in steps:
        for model in ("world_model", "agent"):
            (run.directory.checkpoints / f"{model}_{step}.pth").touch()


def write_evaluation(run: SweepRun, *rows: str) -> None:
    table = run.directory.outputs.parent / "eval_result" / f"{run.name}.csv"
    table.parent.mkdir(exist_ok=True, parents=True)
    table.write_text("\n".join(["step,episode_avg_return,episodes", *rows]) + "\n")


def test_runs_are_named_and_started_as_train_sh_does(tmp_path: Path) -> None:
    words = ["games=Boxing", "seeds=3", "configs=GITSTORM", f"storage={tmp_path}", "Models.Agent.Gamma=0.9"]
    (run,) = plan_runs(parse_options(words))
    assert run.name == "Boxing-GITSTORM-seed_3" and run.directory.outputs == tmp_path / "outputs" / run.name
    script, *settings = run.command("train")
    assert Path(script) == REPOSITORY / "train.py"
    expected = ["env_name=ALE/Boxing-v5", "Seed=3", "config_path=config_files/GITSTORM.yaml", "n=null"]
    assert settings[:4] == [f"BasicSettings.{text}" for text in expected]
    assert settings[-1] == "Models.Agent.Gamma=0.9"
    assert run.config.Models.Agent.Gamma == 0.9 and run.config.JointTrainAgent.ModelType == "GITSTORM"


def test_paths_are_meant_from_where_the_command_is_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("BasicSettings:\n  trajectory_path: null\n")
    (tmp_path / "demo.npz").touch()
    words = ["games=Pong", "configs=mine.yaml", "BasicSettings.trajectory_path=demo.npz"]
    (run,) = plan_runs(parse_options(words))
    assert f"BasicSettings.config_path={tmp_path / 'mine.yaml'}" in run.settings
    assert run.settings[-1] == f"BasicSettings.trajectory_path={tmp_path / 'demo.npz'}"


def test_two_configs_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "STORM-catch.yaml"
    path.write_text("Models:\n  Agent:\n    Gamma: 0.5\n")
    with pytest.raises(UserError, match="two runs of the grid would be named"):
        plan(tmp_path, f"configs=STORM-catch,{path}")


def test_a_run_is_trained_once_it_has_the_wanted_steps(tmp_path: Path) -> None:
    (run,) = plan(tmp_path, f"JointTrainAgent.SampleMaxSteps={WANTED}", "evaluate=false")
    assert run.next_stage() == "train"
    for status, step in (("running", WANTED), ("stopped", WANTED), ("finished", WANTED - 1)):
        write_status(run, status, step)
        assert run.next_stage() == "train"
    run.directory.status_file.write_text('{"status": "finished", "finished_step":')
    assert run.next_stage() == "train"
    write_status(run, "finished", WANTED)
    assert run.next_stage() is None


def test_a_run_is_evaluated_once_every_checkpoint_has_its_row(tmp_path: Path) -> None:
    (run,) = plan(tmp_path, f"JointTrainAgent.SampleMaxSteps={WANTED}")
    write_status(run, "finished", WANTED)
    assert run.next_stage() == "evaluate"
    write_checkpoints(run, 20, 40)
    write_evaluation(run, "40,1.0,5")
    assert run.next_stage() == "evaluate"
    write_evaluation(run, "20,1.0,5", "40,1.0,5")
    assert run.next_stage() is None


@pytest.mark.parametrize(
    ("options", "evaluated"),
    [
        (["-checkpoints", "last"], True),
        (["-checkpoints", "20"], False),
        (["-checkpoints", "last", "-num_episodes", "5"], True),
        (["-checkpoints", "last", "-num_episodes", "6"], False),
        ([], False),
    ],
)
def test_what_is_evaluated_depends_on_what_is_asked_for(
    tmp_path: Path, options: list[str], evaluated: bool
) -> None:
    words = ["evaluate", CATCH, "configs=STORM-catch", f"storage={tmp_path}", *options]
    (run,) = plan_runs(parse_options(words))
    write_checkpoints(run, 20, 40)
    write_evaluation(run, "40,1.0,5")
    assert (run.next_stage() is None) == evaluated


def test_progress_is_read_from_the_newest_lines() -> None:
    lines = [
        {"step": 90, "sample/Diagnostic/Catch-v0_reward": 1.0, "sample/Diagnostic/Catch-v0_episode_steps": 9},
        {"step": 100, "time/steps_per_s": 5.0, "time/elapsed_s": 20.0},
        {"step": 108, "sample/Diagnostic/Catch-v0_reward": -1.0},
        {"step": 110, "health/KL": 1.0},
    ]
    texts = [*map(json.dumps, lines), '{"step": 12']
    progress = read_progress(reversed(texts), wanted=160)
    assert progress == Progress(step=110, wanted=160, speed=5.0, last_return=-1.0)
    assert describe_progress(progress) == "step 110/160  5.0 steps/s  ETA 0:00:10  last return -1"


# --- who runs, who runs again, who is given up


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


# --- what a machine does for a run


def run_script(folder: Path, text: str, lock: Path | None = None) -> tuple[int, str]:
    """The exit code of a Python script that the worker runs, and its log."""
    script, log = folder / "script.py", folder / "run.log"
    script.write_text(text)
    code, _ = worker.run_command(
        [str(script), "an argument"], str(folder), str(log), str(lock) if lock else None, {"EXTRA": "here"}
    )
    return code, log.read_text()


def test_a_command_runs_in_its_folder_and_keeps_what_it_prints(tmp_path: Path) -> None:
    text = "import os, sys; print(os.getcwd(), os.environ['EXTRA'], sys.argv[1]); print('!', file=sys.stderr)"
    for attempt in (1, 2):
        code, log = run_script(tmp_path, f"{text}\nsys.exit(7)")
        assert code == 7 and log.count("=== ") == log.count(f"{tmp_path} here an argument\n") == attempt
    assert log.endswith("!\n")


def test_a_folder_that_is_not_shared_is_said(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="share"):
        worker.run_command(["x.py"], str(tmp_path), str(tmp_path / "none" / "run.log"), None, {})


SAVING = """\
import signal, sys, time
def save(*_):
    print("saved"); sys.exit(75)
signal.signal(signal.SIGTERM, save)
open("ready", "w").close()
time.sleep(300)
"""


def when(condition: Callable[[], bool], act: Callable[[], None], seconds: float = 120) -> threading.Thread:
    """Do something once a condition holds, in a thread."""

    def run() -> None:
        wait_for(condition, seconds)
        act()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def test_a_cancelled_command_may_save(tmp_path: Path) -> None:
    thread = when((tmp_path / "ready").exists, lambda: os.kill(os.getpid(), signal.SIGINT))
    code, log = run_script(tmp_path, SAVING)
    thread.join()
    assert code == 75 and log.endswith("saved\n")


def test_what_a_command_leaves_behind_is_killed(tmp_path: Path) -> None:
    code, log = run_script(
        tmp_path,
        "import subprocess, sys\n"
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)']).pid)",
    )
    assert code == 0
    child = Path("/proc", log.split()[-1], "stat")
    wait_for(lambda: not child.exists() or child.read_text().rsplit(")", 1)[1].split()[0] == "Z")


def test_a_run_waits_for_the_process_that_still_has_it(tmp_path: Path) -> None:
    lock = tmp_path / "run.lock"
    lock.touch()
    hold = (
        "import fcntl; f = open('run.lock', 'a'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", hold], cwd=tmp_path, **pipes) as owner:
        owner.stdout.readline()
        release = threading.Timer(1.5, owner.communicate, [b"\n"])
        release.start()
        take = "import fcntl; fcntl.lockf(open('run.lock', 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        code, log = run_script(tmp_path, take, lock)
        release.join()
    assert code == 0, log


def test_a_run_saves_when_the_process_that_started_it_is_killed(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("needs prctl")
    (tmp_path / "script.py").write_text(SAVING)
    arguments = (["script.py"], str(tmp_path), str(tmp_path / "run.log"), None, {"PYTHONUNBUFFERED": "1"})
    code = f"from sweeping import worker; worker.run_command(*{arguments!r})"
    with subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY) as parent:
        wait_for((tmp_path / "ready").exists)
        parent.kill()
    wait_for(lambda: (tmp_path / "run.log").read_text().endswith("saved\n"))


# --- the scripts


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
    dies, wrong = "stub_envs:StubStartDies-v0", "stub_envs:StubContinuous-v0"
    words = [f"{CATCH},{dies},{wrong}", "configs=STORM-catch", f"storage={tmp_path}", "retries=1"]
    words += [*SHORT, "JointTrainAgent.SampleMaxSteps=40", "JointTrainAgent.SaveEverySteps=20"]
    code, said = finish(start_sweep(*words))
    assert code == 1 and "3 runs: 1 done, 0 running, 0 waiting, 2 failed" in said, said
    failures = said.split("\nfailed:\n")[1].splitlines()
    logs = tmp_path / "outputs" / "sweep" / "logs"
    assert [line.split(":")[0].strip() for line in failures] == [
        f"stub_envs_{name}-v0-STORM-catch-seed_0" for name in ("StubStartDies", "StubContinuous")
    ]
    for line, reason, tries in zip(failures, ("exit code 3", "must be Discrete"), (2, 1), strict=True):
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
