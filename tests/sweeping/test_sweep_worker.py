"""What a machine does for one run of a sweep: real processes, stopped and killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sweep_support import REPOSITORY, wait_for

from sweeping import worker


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
