"""Where environments run: in this process, or each in a worker process of its own.

Both pools share one interface. A worker is a plain Python process, not a fork: it
inherits no PyTorch and no device. Commands and rewards travel through a socket, pictures
through shared memory. Workers ignore the signals that stop a run, so that it can still save,
and end when their socket closes, even if the training process was killed.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np

from utils import REPOSITORY, UserError

if TYPE_CHECKING:
    from environments.single import SingleEnvironment

START_SECONDS = 120.0  # until a worker must have made or reset its environment, or told its state
END_SECONDS = 5.0  # that an idle worker gets to end by itself
GRACE_SECONDS = 1.0  # that a busy one gets, once its socket has closed
IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

Build = Callable[[np.ndarray], "SingleEnvironment"]  # receives the frame to draw in
Step = tuple[float, bool, bool]  # reward, termination, episode end


class PoolFailure(Exception):
    """An environment died, hung or raised; the pool is of no more use."""


def describe(error: Exception) -> str:
    """An exception in one line: UserError's own text, else with the exception's name and place."""
    if isinstance(error, UserError):
        return str(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{os.path.basename(place.filename)}:{place.lineno}"
    return f"{type(error).__name__}: {error} ({where})"


class LocalPool:
    """One environment in this process; its step runs in `receive`.

    Args:
        build: makes the environment. image_size: side of its pictures, S.

    Raises:
        PoolFailure: it cannot be made (as any method does when the environment raises).
    """

    def __init__(self, build: Build, image_size: int) -> None:
        self.frames = np.zeros((1, image_size, image_size, 3), np.uint8)
        self._action = 0
        self._environment = self._guard(build, self.frames[0])
        self.num_actions = self._environment.num_actions

    @staticmethod
    def _guard(method: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return method(*arguments)
        except Exception as error:
            raise PoolFailure(describe(error)) from error

    def reset(self, seeds: dict[int, int]) -> None:
        """Seed the given environments and begin their first episodes."""
        for seed in seeds.values():
            self._guard(self._environment.reset, seed)

    def send(self, actions: list[int]) -> None:
        """Note the action."""
        self._action = actions[0]

    def receive(self) -> list[Step]:
        """Take the step."""
        return [self._guard(self._environment.step, self._action)]

    def states(self) -> list[dict[str, Any]]:
        """The environments' states."""
        return [self._guard(self._environment.state_dict)]

    def load(self, states: list[dict[str, Any]]) -> list[str | None]:
        """Restore them; for each, why that was not possible, or None."""
        return [self._guard(self._environment.load_state_dict, states[0])]

    def close(self, kill: bool = False) -> None:
        """Close the environment; one that has failed may fail again."""
        with contextlib.suppress(Exception):
            self._environment.close()


class WorkerPool:
    """Environments that step at the same time, each in its own process.

    Args:
        build: makes an environment; it is sent to the workers by name.
        num_envs, image_size: N and S; `frames` is uint8 (N, S, S, 3), shared.
        step_timeout: seconds that a step may take from `send` on; 0 waits for ever.

    Raises:
        PoolFailure: one of them died, hung or raised (as any method does).
    """

    def __init__(self, build: Build, num_envs: int, image_size: int, step_timeout: float) -> None:
        self._step_timeout = step_timeout
        self._deadline: float | None = None
        self._connections: list[Connection] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        shape = (num_envs, image_size, image_size, 3)
        memory = _shared_file(int(np.prod(shape)))
        try:
            self.frames = _map_frames(memory, shape)
            for index in range(num_envs):
                self._start(memory)
                self._tell(index, sys.path)
                self._tell(index, (build, shape, index))
            deadline = _in(START_SECONDS)
            self.num_actions = max(self._answer(index, deadline) for index in range(num_envs))
        except BaseException:
            self.close(kill=True)
            raise
        finally:
            os.close(memory)

    def _start(self, memory: int) -> None:
        ours, theirs = socket.socketpair()
        code = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from environments.workers import serve"
        command = [sys.executable, "-c", f"{code}; serve({theirs.fileno()}, {memory})"]
        before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED_SIGNALS)  # inherited until it ignores them
        try:
            with theirs:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), memory),
                    start_new_session=True,
                )
        except OSError as error:
            ours.close()
            raise PoolFailure(f"cannot start a worker process: {error}") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._processes.append(process)
        self._connections.append(Connection(ours.detach()))

    def _tell(self, index: int, message: Any) -> None:
        with contextlib.suppress(OSError):  # a dead worker shows when its answer is awaited
            self._connections[index].send(message)

    def _answer(self, index: int, deadline: float | None) -> Any:
        connection = self._connections[index]
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            if not connection.poll(left):
                raise PoolFailure(f"the worker of environment {index} did not answer in time")
            kind, answer = connection.recv()
        except (EOFError, OSError):
            raise PoolFailure(f"the worker of environment {index} died{self._exit_code(index)}") from None
        if kind == "error":
            raise PoolFailure(answer)
        return answer

    def _exit_code(self, index: int) -> str:
        try:
            return f" (exit code {self._processes[index].wait(END_SECONDS)})"
        except subprocess.TimeoutExpired:
            return ""

    def _ask(self, messages: dict[int, tuple[Any, ...]], seconds: float | None) -> list[Any]:
        for index, message in messages.items():
            self._tell(index, message)
        deadline = _in(seconds)
        return [self._answer(index, deadline) for index in messages]

    def reset(self, seeds: dict[int, int]) -> None:
        """Seed the given environments and begin their first episodes."""
        self._ask({index: ("reset", seed) for index, seed in seeds.items()}, START_SECONDS)

    def send(self, actions: list[int]) -> None:
        """Let every environment begin its step."""
        self._deadline = _in(self._step_timeout or None)
        for index, action in enumerate(actions):
            self._tell(index, ("step", action))

    def receive(self) -> list[Step]:
        """Wait for the steps to end."""
        return [self._answer(index, self._deadline) for index in range(len(self._connections))]

    def states(self) -> list[dict[str, Any]]:
        """The environments' states."""
        return self._ask(dict.fromkeys(range(len(self._connections)), ("state_dict",)), START_SECONDS)

    def load(self, states: list[dict[str, Any]]) -> list[str | None]:
        """Restore them, however long that takes; for each, why that was not possible, or None."""
        return self._ask({index: ("load_state_dict", state) for index, state in enumerate(states)}, None)

    def close(self, kill: bool = False) -> None:
        """End the workers: by closing their sockets, at once if `kill`."""
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            if kill:
                process.kill()
            try:
                process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._connections, self._processes = [], []


def _in(seconds: float | None) -> float | None:
    return None if seconds is None else time.monotonic() + seconds


def _shared_file(size: int) -> int:
    """A nameless file of `size` bytes, in memory where the system can; nothing is left of it."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("frames")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.truncate(descriptor, size)
    return descriptor


def _map_frames(descriptor: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(mmap.mmap(descriptor, int(np.prod(shape))), np.uint8).reshape(shape)


def _end_with_parent(descriptor: int) -> None:
    """End this process when the other end of its socket closes, even if its environment hangs."""
    poll = select.poll()
    poll.register(descriptor, 0)  # a hang-up is always reported
    poll.poll()
    time.sleep(GRACE_SECONDS)
    os._exit(0)


def serve(socket_descriptor: int, memory_descriptor: int) -> None:
    """A worker's life: make the environment, then do as told until the socket closes."""
    for number in IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(socket_descriptor,), daemon=True).start()
    connection = Connection(socket_descriptor)
    environment = None
    with contextlib.suppress(EOFError, ConnectionError):
        sys.path[:] = connection.recv()
        build, shape, index = connection.recv()
        frame = _map_frames(memory_descriptor, shape)[index]
        environment = _attempt(connection, build, frame)
        while environment is not None:
            method, *arguments = connection.recv()
            _attempt(connection, getattr(environment, method), *arguments)
    if environment is not None:
        environment.close()


def _attempt(connection: Connection, method: Callable[..., Any], *arguments: Any) -> Any:
    """Call it and send what came of it; of an environment, its number of actions."""
    try:
        answer = method(*arguments)
    except Exception as error:
        connection.send(("error", describe(error)))
        return None
    connection.send(("ok", getattr(answer, "num_actions", answer)))
    return answer
