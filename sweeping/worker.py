"""What a machine does for one run: start its command, keep what it prints, stop it when asked.

Ray ships these functions to the machines as they are, so they use the standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

POLL_SECONDS = 0.2
SAVE_SECONDS = 900.0  # a run that was asked to stop may take so long to save
FREE_SECONDS = 60.0  # a process that lost its sweep may take so long to give its run back
DIE_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG


def run_command(
    command: list[str], folder: str, log: str, lock: str | None, environment: dict[str, str]
) -> tuple[int, str]:
    """Run a Python command to its end, in its own process group.

    An interrupt (Ray's cancellation) is passed on as SIGTERM, on which a run saves and exits. If
    this process dies, the kernel sends the same signal.

    Args:
        command: script and arguments, run by this machine's Python. folder: to run it in.
        log: file that output is appended to; its folder must be there on every machine.
        lock: file that the run locks, or None. environment: variables to set.

    Returns:
        Exit code (negative: the signal it died by), and this machine's name.
    """
    host = socket.gethostname()
    if not Path(log).parent.is_dir():
        raise RuntimeError(
            f"{host} has no {Path(log).parent}: storage= must be a folder that all nodes share"
        )
    asked_at: list[float] = []
    previous = signal.signal(signal.SIGINT, lambda number, frame: asked_at.append(time.monotonic()))
    try:
        with open(log, "ab", buffering=0) as output:
            now = time.strftime("%Y-%m-%d %H:%M:%S")
            output.write(f"=== {now} {host}: python {' '.join(command)}\n".encode())
            wait_until_free(lock, lambda: bool(asked_at))
            if asked_at:
                return -signal.SIGTERM, host
            process = start(command, folder, output.fileno(), environment)
            return wait_for(process, asked_at), host
    finally:
        signal.signal(signal.SIGINT, previous)


def wait_until_free(lock: str | None, is_asked_to_stop: Callable[[], bool]) -> None:
    """Wait a while for a process that still has the run, such as one whose sweep was killed."""
    deadline = time.monotonic() + FREE_SECONDS
    while lock is not None and time.monotonic() < deadline and not is_asked_to_stop():
        try:
            with open(lock, "r+b") as file:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):  # there is none yet: the run will say so
                return
        time.sleep(POLL_SECONDS)


def start(
    command: list[str], folder: str, output: int, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    """Start a command that gets SIGTERM when this process dies."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def in_child() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, [])  # Ray blocks signals, and children inherit that
        if libc is not None:
            libc.prctl(DIE_WITH_PARENT, signal.SIGTERM)

    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        preexec_fn=in_child,
    )


def wait_for(process: subprocess.Popen[bytes], asked_at: list[float]) -> int:
    """The exit code of a process, which is sent SIGTERM once `asked_at` has an entry."""
    told = False
    try:
        while process.poll() is None:
            if asked_at and not told:
                process.terminate()
                told = True
            elif asked_at and time.monotonic() - asked_at[0] > SAVE_SECONDS:
                process.kill()
            time.sleep(POLL_SECONDS)
        return process.returncode
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # what it started and left
