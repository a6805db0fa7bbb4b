"""Environments that die, hang, raise or return nonsense cost a row, never the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from stub_envs import FRESH_SEED, TROUBLE_AT

from configuration.schema import EnvironmentConfig
from env_wrapper import EnvironmentFault, StepResult, VectorEnvironment
from environments import workers as env_workers
from utils import Interrupt, UserError, raise_interrupt

Make = Callable[..., VectorEnvironment]


@pytest.fixture
def make() -> Iterable[Make]:
    """A stub environment by its trouble; closed afterwards."""
    made: list[VectorEnvironment] = []

    def build(trouble: str, num_envs: int = 2, timeout: float = 0.0, seed: int = 0) -> VectorEnvironment:
        name = f"stub_envs:Stub{trouble.title().replace(' ', '')}-v0"
        made.append(VectorEnvironment(name, EnvironmentConfig(StepTimeout=timeout), 16, num_envs, seed))
        return made[-1]

    yield build
    for environment in made:
        environment.close()


def step(environment: VectorEnvironment) -> StepResult:
    environment.start_step(np.ones(environment.num_envs, np.int64))
    return environment.finish_step()


def worker_pids(environment: VectorEnvironment) -> list[int]:
    return [member.process.pid for member in environment._pool._members]


def is_running(pid: int) -> bool:
    """Whether the process lives; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_ended(pids: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(map(is_running, pids))


FAULTS = {
    "dies": "the worker of environment 1 died (exit code 3)",
    "hangs": "the worker of environment 1 did not answer in time",
    "raises": "RuntimeError: the stub raises (stub_envs.py:",
    "NaN": "its reward must be finite, found nan",
    "huge": "its reward must be finite, found 1e+200",
    "text": "its reward must be a number, found 'much'",
    "shape": "its observation must be uint8 (16, 16, 3), found uint8 (15, 16, 3)",
    "dtype": "its observation must be uint8 (16, 16, 3), found float32 (16, 16, 3)",
}
IN_WORKERS = [(trouble, 2) for trouble in ("dies", "hangs", "raises", "NaN")]
IN_PROCESS = [(trouble, 1) for trouble in FAULTS if trouble not in ("dies", "hangs")]


@pytest.mark.parametrize(("trouble", "num_envs"), [*IN_WORKERS, *IN_PROCESS])
def test_a_fault_begins_new_episodes_on_new_seeds(trouble: str, num_envs: int, make: Make) -> None:
    environment = make(trouble, num_envs, timeout=1.5 if trouble == "hangs" else 0, seed=2 - num_envs)
    seeds = list(environment.seeds)
    environment.reset()
    for _ in range(TROUBLE_AT - 1):
        step(environment)
    with pytest.raises(EnvironmentFault) as caught:
        step(environment)
    assert FAULTS[trouble] in str(caught.value) and environment.name in str(caught.value)
    assert not set(environment.seeds) & set(seeds) and min(environment.seeds) >= FRESH_SEED
    assert len(set(environment.seeds)) == num_envs
    assert not environment.observation.any()  # first frames: the stub's show the step's number
    assert environment.state_dict()["fault_count"] == 1
    results = [step(environment) for _ in range(10)]
    assert results[-1].episode_end.all() and (results[-1].episode_length == 10).all()
    assert (results[-1].episode_return == 60).all()  # ten rewards of 6, none from before the fault


def test_new_seeds_follow_from_the_first_and_the_number_of_faults(make: Make) -> None:
    seeds = []
    for seed in (1, 1, 3):
        environment = make("raises", num_envs=1, seed=seed)
        environment.reset()
        with pytest.raises(EnvironmentFault):
            for _ in range(TROUBLE_AT):
                step(environment)
        seeds.append(environment.seeds)
    assert seeds[0] == seeds[1] != seeds[2]


def test_a_fault_while_saving_is_saved_and_reported_by_the_next_step(make: Make) -> None:
    environment, resumed = make(""), make("")
    environment.reset()
    step(environment)
    os.kill(worker_pids(environment)[1], signal.SIGKILL)
    state = environment.state_dict()
    assert state["fault_count"] == 1 and state["seeds"] == environment.seeds
    resumed.load_state_dict(state)
    for each in (environment, resumed):
        with pytest.raises(EnvironmentFault, match="environment 1 died"):
            step(each)
        assert (step(each).episode_length == 1).all()


@pytest.mark.parametrize("num_envs", [1, 2])
@pytest.mark.parametrize(
    ("trouble", "error"),
    [("exits", "SystemExit: 0"), ("interrupts", "KeyboardInterrupt"), ("leaves", "GeneratorExit")],
)
def test_an_environment_that_ends_the_process_is_a_fault(
    make: Make, trouble: str, error: str, num_envs: int
) -> None:
    environment = make(trouble, num_envs, seed=2 - num_envs)
    environment.reset()
    before = signal.signal(signal.SIGINT, raise_interrupt)  # as in a command
    try:
        with pytest.raises(EnvironmentFault, match=error):
            for _ in range(TROUBLE_AT):
                step(environment)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, Interrupt])
def test_a_key_that_leaves_at_once_is_no_fault(
    make: Make, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def leaves(*_: object) -> None:
        raise error

    environment = make("interrupts", 1, seed=1)
    environment.reset()
    monkeypatch.setattr(sys.modules["stub_envs"].Stub, "_misbehave", leaves)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a notebook
    try:
        with pytest.raises(error):
            for _ in range(TROUBLE_AT):
                step(environment)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("trouble", "text"), [("start dies", "died (exit code 3)"), ("start raises", "stub raises")]
)
def test_a_worker_that_cannot_start_is_an_error(trouble: str, text: str, make: Make) -> None:
    with pytest.raises(UserError) as caught:
        make(trouble)
    assert text in str(caught.value) and "stub_envs" in str(caught.value)


def test_a_worker_that_hangs_at_its_start_is_an_error(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env_workers, "START_SECONDS", 2.0)
    with pytest.raises(UserError, match="did not answer in time"):
        make("start hangs")


def test_a_restart_that_fails_is_an_error(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = make("raises")
    environment.reset()
    monkeypatch.setattr(env_workers.sys, "executable", "/nowhere/python")
    with pytest.raises(UserError, match="starting again failed: cannot start a worker"):
        for _ in range(TROUBLE_AT):
            step(environment)


def test_workers_ignore_the_signals_that_stop_a_run(make: Make) -> None:
    environment = make("")
    for pid in worker_pids(environment):
        for number in env_workers.IGNORED_SIGNALS:
            os.kill(pid, number)
    environment.reset()
    assert (step(environment).episode_length == 1).all() and environment.fault_count == 0
    assert {signal.SIGUSR2, signal.SIGXCPU} <= set(env_workers.IGNORED_SIGNALS)


def test_workers_load_no_pytorch(make: Make) -> None:
    assert "torch" in sys.modules
    make("torch").reset()


def test_workers_end_with_close(make: Make) -> None:
    environment = make("")
    pids = worker_pids(environment)
    assert all(map(is_running, pids))
    environment.close()
    assert not any(map(is_running, pids))


PARENT = """
import functools, sys, time
from configuration.schema import EnvironmentConfig
from environments.workers import Pool
from environments.single import SingleEnvironment
name = f"stub_envs:Stub{sys.argv[1]}-v0"
build = functools.partial(SingleEnvironment, name, EnvironmentConfig(), 16, False)
pool = Pool(build, 2, 0)
pool.reset({0: 0, 1: 1})
print(*[member.process.pid for member in pool._members], flush=True)
while True:
    pool.send([0, 0])
    pool.receive()
    time.sleep(0.01)
"""


@pytest.mark.parametrize("trouble", ["", "Hangs"])
def test_workers_end_when_their_parent_is_killed(trouble: str) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", PARENT, trouble]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        time.sleep(0.3)  # by now one of the hanging ones hangs
        assert len(pids) == 2 and all(map(is_running, pids))
        parent.kill()
    assert wait_until_ended(pids, 10)
