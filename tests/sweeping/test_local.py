"""What this machine does for the runs of a sweep: real processes, stopped and killed, and its cards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sweep_support import CATCH, REPOSITORY, wait_for

from sweeping import local
from sweeping.options import parse_options
from utils import UserError


def job(folder: Path, text: str, lock: str = "") -> local.Job:
    """A Python script of that text, in a folder."""
    script = folder / "script.py"
    script.write_text(text)
    return local.Job([str(script), "an argument"], str(folder), str(folder / "run.log"), lock)


def test_a_command_runs_in_its_folder_and_keeps_what_it_prints(tmp_path: Path) -> None:
    text = "import os, sys; print(os.getcwd(), os.environ['EXTRA'], sys.argv[1]); print('!', file=sys.stderr)"
    for attempt in (1, 2):
        assert local.run_job(job(tmp_path, f"{text}\nsys.exit(7)"), {"EXTRA": "here"}, lambda: False) == 7
        log = (tmp_path / "run.log").read_text()
        assert log.count("=== ") == log.count(f"{tmp_path} here an argument\n") == attempt
    assert log.endswith("!\n")


SAVING = """\
import signal, sys, time
def save(*_):
    print("saved"); sys.exit(75)
signal.signal(signal.SIGTERM, save)
open("ready", "w").close()
time.sleep(300)
"""


def test_a_command_that_is_asked_to_stop_may_save(tmp_path: Path) -> None:
    assert local.run_job(job(tmp_path, SAVING), {}, (tmp_path / "ready").exists) == 75
    assert (tmp_path / "run.log").read_text().endswith("saved\n")


def test_what_a_command_leaves_behind_is_killed(tmp_path: Path) -> None:
    text = (
        "import subprocess, sys\n"
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)']).pid)"
    )
    assert local.run_job(job(tmp_path, text), {}, lambda: False) == 0
    child = Path("/proc", (tmp_path / "run.log").read_text().split()[-1], "stat")
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
        release = threading.Timer(0.7, owner.communicate, [b"\n"])
        release.start()
        take = "import fcntl; fcntl.lockf(open('run.lock', 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
        assert local.run_job(job(tmp_path, take, str(lock)), {}, lambda: False) == 0
        release.join()


def test_a_run_saves_when_the_process_that_started_it_is_killed(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("needs prctl")
    (tmp_path / "script.py").write_text(SAVING)
    given = (["script.py"], str(tmp_path), str(tmp_path / "run.log"), "")
    code = f"from sweeping import local; local.run_job(local.Job(*{given!r}), {{}}, lambda: False)"
    with subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY) as parent:
        wait_for((tmp_path / "ready").exists)
        parent.kill()
    wait_for(lambda: (tmp_path / "run.log").read_text().endswith("saved\n"))


@pytest.mark.parametrize(
    ("words", "visible", "on_cpu", "cards"),
    [
        (["cpus_per_run=2"], None, False, ["0", "1", "2"]),
        (["gpus_per_run=0.5"], None, False, ["0", "1", "2", "0", "1", "2"]),
        (["gpus_per_run=0.5", "cpus_per_run=1.5"], None, False, ["0", "1", "2", "0"]),
        (["gpus_per_run=1"], "5,GPU-x,7", False, ["5", "GPU-x", "7"]),
        (["cpus_per_run=3"], None, True, ["", ""]),
        (["cpus_per_run=3", "gpus_per_run=0"], None, False, ["", ""]),
    ],
)
def test_cores_and_cards_are_shared_out(
    monkeypatch: pytest.MonkeyPatch, words: list[str], visible: str | None, on_cpu: bool, cards: list[str]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(6), raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    assert local.share_out(parse_options([CATCH, *words]), on_cpu) == cards


def test_a_share_of_a_card_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(UserError, match="no card"):
        local.share_out(parse_options([CATCH, "gpus_per_run=0.5"]), False)


def test_a_job_sees_its_card_and_gives_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    engine = local.LocalEngine(parse_options([CATCH]), on_cpu=False)
    tell = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['OMP_NUM_THREADS'])"
    for _ in range(2):
        assert engine.run(job(tmp_path, tell)) == 0
    assert engine.places == 1 and (tmp_path / "run.log").read_text().count("\n0 1\n") == 2
    engine.stop()
    assert engine.run(job(tmp_path, "import time; time.sleep(300)")) == -signal.SIGTERM
