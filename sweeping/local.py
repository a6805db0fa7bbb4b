"""Jobs side by side on this machine, each with its share of cores and cards."""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from sweeping.options import Options
from utils import UserError

POLL_SECONDS = 0.2
FREE_SECONDS = 60.0  # a process that lost its sweep may take so long to save and give its run back
# Has the kernel send SIGTERM, on which a run saves, when the parent dies; then becomes the command.
LAUNCH = """\
import ctypes, os, signal, sys
signal.pthread_sigmask(signal.SIG_SETMASK, [])  # Ray blocks signals
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "TQDM_MININTERVAL": "5"}


@dataclass(frozen=True)
class Job:
    """A Python command to run."""

    command: Sequence[str]  # script and arguments
    folder: str  # to run it in
    log: str  # file that output is appended to
    lock: str  # file that another process may have locked for a while; "": none


def run_job(job: Job, variables: Mapping[str, str], is_stopping: Callable[[], bool]) -> int:
    """Run a job to its end; return its exit code (negative: the signal it died by).

    `variables` are added to the environment. Once `is_stopping`, the job gets SIGTERM and may save.
    """
    wait_until_free(job.lock, is_stopping)
    with open(job.log, "ab", buffering=0) as output:
        now, words = time.strftime("%Y-%m-%d %H:%M:%S"), " ".join(job.command)
        output.write(f"=== {now} {os.uname().nodename}: python {words}\n".encode())
        process = subprocess.Popen(
            ends_with_parent(job.command),
            cwd=job.folder,
            env={**os.environ, **ENVIRONMENT, **variables},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        while process.poll() is None and not is_stopping():
            time.sleep(POLL_SECONDS)
        process.terminate()
        return process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # what it started and left


def ends_with_parent(command: Sequence[str]) -> list[str]:
    """Return the command line of a Python command, script and arguments, that ends with its parent's thread.

    On Linux; the kernel then sends it SIGTERM, on which a run saves.
    """
    return [sys.executable, "-c", LAUNCH, *command]


def wait_until_free(lock: str, is_stopping: Callable[[], bool] = lambda: False) -> None:
    """Wait until no process holds a lock, as one that has lost its parent and saves, but not for ever."""
    deadline = time.monotonic() + FREE_SECONDS
    while is_locked(lock) and time.monotonic() < deadline and not is_stopping():
        time.sleep(POLL_SECONDS)


def is_locked(path: str) -> bool:
    """Return whether another process holds a lock on a file."""
    try:
        with open(path, "r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False


class LocalEngine:
    """As many jobs at once as fit. Raise UserError if not even one does."""

    def __init__(self, options: Options, on_cpu: bool) -> None:
        cards = share_out(options, on_cpu)
        self.places = len(cards)
        self._threads = str(max(1, int(options.cpus_per_run)))
        self._stopping = threading.Event()
        self._cards: queue.SimpleQueue[str] = queue.SimpleQueue()
        for card in cards:
            self._cards.put(card)

    def run(self, job: Job) -> int:
        """Run a job to its end; return its exit code."""
        card = self._cards.get()
        try:
            variables = {"OMP_NUM_THREADS": self._threads, "CUDA_VISIBLE_DEVICES": card}
            return run_job(job, variables, self._stopping.is_set)
        finally:
            self._cards.put(card)

    def stop(self) -> None:
        """Ask all jobs to stop; those that run may save first."""
        self._stopping.set()


def share_out(options: Options, on_cpu: bool) -> list[str]:
    """Return the card ("": none) of each job that can run at once. Raise UserError if there is none."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    places = int(cores / options.cpus_per_run)
    if places == 0:
        raise UserError(f"cpus_per_run={options.cpus_per_run:g}: this machine has {cores} cores")
    count = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    share = options.gpus_per_run
    if share is None:
        share = 1.0 if count and not on_cpu else 0.0
    if share == 0:
        return [""] * places
    if count == 0:
        raise UserError(f"gpus_per_run={share:g}: PyTorch finds no card on this machine")
    return (names.split(",")[:count] * int(1 / share))[:places]
