"""Where environments run: in this process, or each in a worker process of its own.

A worker is a plain Python process, not a fork: it inherits no PyTorch and no device. Calls and
their answers travel through a socket. Workers ignore the signals that stop a run, so that it can
still save, and end when their socket closes, even if the training process was killed.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np

from configuration.spaces import Spaces
from utils import REPOSITORY, UserError, is_interrupt

if TYPE_CHECKING:
    from environments.single import SingleEnvironment

START_SECONDS = 120.0  # until a worker must have made or reset its environment, or told its state
END_SECONDS = 5.0  # that an idle worker gets to end by itself
GRACE_SECONDS = 1.0  # that a busy one gets, once its socket has closed
STOPS = ("TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "XCPU", "ALRM", "VTALRM", "PROF", "IO", "PWR")
IGNORED_SIGNALS = tuple(getattr(signal, f"SIG{name}") for name in STOPS if hasattr(signal, f"SIG{name}"))

Build = Callable[[], "SingleEnvironment"]


class PoolFailure(Exception):
    """An environment died, hung or raised; the pool is of no more use."""


def describe(error: BaseException) -> str:
    """An exception in one line: UserError's own text, else with the exception's name and place."""
    if isinstance(error, UserError):
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{os.path.basename(place.filename)}:{place.lineno}"
    return f"{type(error).__name__}: {error} ({where})"


class LocalMember:
    """An environment of this process: what it is asked happens when the answer is awaited."""

    def __init__(self, index: int = 0) -> None:
        self._environment: SingleEnvironment | None = None
        self._call: tuple[Any, ...] = ()

    def ask(self, *call: Any) -> None:
        """Note `"build", build`, or a method of the environment and its arguments."""
        self._call = call

    def answer(self, deadline: float = math.inf) -> tuple[bool, Any]:
        """Do what was noted; return whether it went well, and what came of it (of `build` the spaces)."""
        method, *arguments = self._call
        try:
            if self._environment is None:
                self._environment = arguments[0]()
                return True, self._environment.spaces
            return True, getattr(self._environment, method)(*arguments)
        except BaseException as error:
            if is_interrupt(error):
                raise
            return False, describe(error)

    def close(self) -> None:
        """Close the environment; one that has failed may fail again."""
        if self._environment is not None:
            self.ask("close")
            self.answer()

    def end(self, kill: bool) -> None:
        """Nothing is left to be ended."""


class WorkerMember:
    """An environment in a process of its own.

    Raises:
        PoolFailure: the process cannot be started.
    """

    def __init__(self, index: int) -> None:
        self._index = index
        ours, theirs = socket.socketpair()
        code = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from environments.workers import serve"
        command = [sys.executable, "-c", f"{code}; serve({theirs.fileno()})"]
        before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED_SIGNALS)  # inherited until it ignores them
        try:
            with theirs:
                self.process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),), start_new_session=True
                )
        except OSError as error:
            ours.close()
            raise PoolFailure(f"cannot start a worker process: {error}") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._connection = Connection(ours.detach())
        self.ask(*sys.path)

    def ask(self, *call: Any) -> None:
        """Let the worker begin."""
        with contextlib.suppress(OSError):  # a dead worker shows when its answer is awaited
            self._connection.send(call)

    def answer(self, deadline: float) -> tuple[bool, Any]:
        """Wait for the worker's answer, at most until `deadline`."""
        left = max(0.0, deadline - time.monotonic())
        try:
            if not self._connection.poll(None if left == math.inf else left):
                return False, f"the worker of environment {self._index} did not answer in time"
            return self._connection.recv()
        except (EOFError, OSError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(END_SECONDS)
            code = self.process.returncode
            return False, f"the worker of environment {self._index} died (exit code {code})"

    def close(self) -> None:
        """Close the socket, at which the worker ends."""
        self._connection.close()

    def end(self, kill: bool) -> None:
        """Wait for the worker's end; kill it at once, or if it does not come."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(0 if kill else END_SECONDS)
        self.process.kill()
        self.process.wait()


class Pool:
    """N environments that step at the same time.

    Args:
        build: makes an environment; it is sent to workers by name.
        num_envs: N.
        step_timeout: seconds that a step may take from `send` on; 0 waits for ever. One environment
            without a limit runs in this process, others in a worker process each.

    Raises:
        PoolFailure: one of them died, hung or raised (as any method does).
    """

    def __init__(self, build: Build, num_envs: int, step_timeout: float) -> None:
        member = LocalMember if num_envs == 1 and step_timeout == 0 else WorkerMember
        self._step_timeout = step_timeout
        self._deadline = math.inf
        self._members: list[LocalMember | WorkerMember] = []
        try:
            for index in range(num_envs):
                self._members.append(member(index))
            found = self.ask(dict.fromkeys(range(num_envs), ("build", build)))
        except BaseException:
            self.close(kill=True)
            raise
        self.spaces: Spaces = found[0]
        seen = self.spaces.observation
        self.observation = np.zeros((num_envs, *seen.shape), seen.dtype)

    def ask(self, calls: dict[int, tuple[Any, ...]], patiently: bool = False) -> list[Any]:
        """Return what methods of environments return; waits without a limit if `patiently`.

        Args:
            calls: a method's name and arguments by the environment's index.
        """
        for index, call in calls.items():
            self._members[index].ask(*call)
        return self._answers(calls, time.monotonic() + (math.inf if patiently else START_SECONDS))

    def _answers(self, indices: Iterable[int], deadline: float) -> list[Any]:
        answers = []
        for index in indices:
            well, answer = self._members[index].answer(deadline)
            if not well:
                raise PoolFailure(answer)
            answers.append(answer)
        return answers

    def reset(self, seeds: dict[int, int]) -> None:
        """Seed the given environments and begin their first episodes."""
        firsts = self.ask({index: ("reset", seed) for index, seed in seeds.items()})
        for index, first in zip(seeds, firsts, strict=True):
            self.observation[index] = first

    def send(self, actions: np.ndarray) -> None:
        """Let every environment begin its step."""
        self._deadline = time.monotonic() + (self._step_timeout or math.inf)
        for member, action in zip(self._members, actions, strict=True):
            member.ask("step", action)

    def receive(self) -> list[tuple[float, bool, bool]]:
        """Wait for the steps to end; return reward, termination and episode end of each."""
        answers = self._answers(range(len(self._members)), self._deadline)
        for index, (observation, *_) in enumerate(answers):
            self.observation[index] = observation
        return [step for _, *step in answers]

    def close(self, kill: bool = False) -> None:
        """End the environments and their workers, at once if `kill`."""
        for member in self._members:
            member.close()
        for member in self._members:
            member.end(kill)
        self._members = []


def _end_with_parent(descriptor: int) -> None:
    """End this process when the other end of its socket closes, even if its environment hangs."""
    poll = select.poll()
    poll.register(descriptor, 0)  # a hang-up is always reported
    poll.poll()
    time.sleep(GRACE_SECONDS)
    os._exit(0)


def serve(descriptor: int) -> None:
    """A worker's life: do as told until the socket closes."""
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(descriptor,), daemon=True).start()
    connection, member = Connection(descriptor), LocalMember()
    with contextlib.suppress(EOFError, ConnectionError):
        sys.path[:] = connection.recv()
        while True:
            member.ask(*connection.recv())
            connection.send(member.answer())
    member.close()
