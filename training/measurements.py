"""What benchmark.py measures: phases of an iteration, the device's own limits, the whole loop."""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import math
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from agents import make_models
from compute.execution import Execution
from compute.memory_limits import free_bytes
from compute.random_streams import RandomStreams
from configuration.loading import apply_overrides
from configuration.schema import Config
from configuration.spaces import Spaces
from evaluation.episodes import evaluation_environment, play
from evaluation.policies import EvaluationPolicy, TrainedModels
from replay_buffer import ReplayBuffer
from run_files.directory import RunDirectory
from run_files.states import StateStore
from sub_models.batch import Batch, Rollout
from training.learner import Learner, make_policy
from training.run import TrainingRun
from utils import resolve_device

COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 32}  # at most, and a quarter of what is free
TRACED_STEPS = 40  # at most, of the loop whose kernels are recorded: thousands a step, each an event to count


@dataclass(frozen=True)
class Clock:
    """Times functions on a device, `repeats` calls after `warm_up` of them; one call each once time is up."""

    device: torch.device
    repeats: int
    warm_up: int
    end: float = math.inf  # of time.monotonic

    @property
    def is_over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self.end

    def now(self) -> float:
        """Seconds on the clock once the device has done all its work."""
        if self.device.type != "cpu":
            torch.get_device_module(self.device).synchronize()
        return time.perf_counter()

    def once(self, function: Callable[[], Any]) -> float:
        """Seconds of one call."""
        start = self.now()
        function()
        return self.now() - start

    def measure(self, function: Callable[[], Any]) -> list[float]:
        """Seconds of each call."""
        for _ in range(self.warm_up):
            if not self.is_over:
                function()
        seconds = [self.once(function)]
        while len(seconds) < self.repeats and not self.is_over:
            seconds.append(self.once(function))
        return seconds

    def fastest(self, statement: str, **names: Any) -> float:
        """Seconds of a short statement, the fastest of many blocks of calls."""
        timer = Timer(statement, timer=self.now, globals=names, num_threads=torch.get_num_threads())
        return min(timer.blocked_autorange(min_run_time=1.0).times)


def product_rate(clock: Clock, shape: tuple[int, int, int], dtype: torch.dtype) -> float:
    """FLOP/s of random matrix products (m×k)·(k×n) at best: a peak."""
    m, k, n = shape
    a = torch.randn(m, k, device=clock.device, dtype=dtype)
    b = torch.randn(k, n, device=clock.device, dtype=dtype)
    return 2 * m * k * n / clock.fastest("a @ b", a=a, b=b)


def copy_bandwidth(clock: Clock) -> float:
    """Bytes per second, read plus written, of a large copy within the device's memory at best."""
    size, free = COPY_BYTES.get(clock.device.type, 1 << 28), free_bytes(clock.device)
    size = size if free is None else min(size, free // 4)
    source = torch.ones(size, dtype=torch.uint8, device=clock.device)
    target = torch.empty_like(source)
    return 2 * source.numel() / clock.fastest("target.copy_(source)", source=source, target=target)


class Iteration:
    """One iteration's phases on random data, at the sizes of a config.

    Args:
        config: of the run. spaces: what is observed and done. execution: device, precision, compilation.
    """

    def __init__(self, config: Config, spaces: Spaces, execution: Execution) -> None:
        self.config, self.execution = config, execution
        self.streams = RandomStreams(config.BasicSettings.Seed, execution.device)
        self.learner = Learner(config, spaces, execution, self.streams)
        self.policy = make_policy(config, self.learner, execution, self.streams)
        self.replay = self.fill_replay(spaces)
        self.windows, self.contexts = self.sample()
        generator = self.streams.generator("benchmark")
        self.seen = self.replay.sample(config.JointTrainAgent.NumEnvs, 1, generator).observation[:, 0]
        for _ in range(config.JointTrainAgent.ActingContextLength):
            self.act()

    def fill_replay(self, spaces: Spaces) -> ReplayBuffer:
        """Return a replay buffer of random steps, a few windows long."""
        task, rng, actions = self.config.JointTrainAgent, np.random.default_rng(0), self.learner.agent.actions
        steps = 4 * max(task.BatchLength, task.ImagineContextLength), task.NumEnvs
        observation = rng.uniform(0, 256, (*steps, *spaces.observation.shape))
        rows = {
            "observation": observation.astype(spaces.observation.dtype),
            "action": actions.uniform(torch.rand(*steps, actions.noise_size)).numpy(),
            "reward": rng.integers(2, size=steps).astype(np.float32),
            "termination": (rng.random(steps) < 0.01).astype(np.float32),
        }
        replay = ReplayBuffer(steps[0], task.NumEnvs, spaces, self.execution.device)
        replay.import_rows(0, rows)
        return replay

    def sample(self) -> tuple[Batch, Batch]:
        """Return what one iteration draws from the replay buffer: windows and contexts."""
        task, generator = self.config.JointTrainAgent, self.streams.generator("benchmark")
        windows = self.replay.sample(task.BatchSize, task.BatchLength, generator)
        return windows, self.replay.sample(task.ImagineBatchSize, task.ImagineContextLength, generator)

    def act(self) -> None:
        """Choose one action per environment."""
        self.policy.act(self.seen)

    def imagine(self) -> Rollout:
        """Imagine once."""
        return self.learner.imagine(self.contexts)

    def phases(self) -> dict[str, Callable[[], object]]:
        """Return what is timed, in the order of an iteration."""
        learner, rollout = self.learner, self.imagine()
        return {
            "acting": self.act,
            "replay sampling": self.sample,
            "world model": lambda: learner.update_world_model(self.windows),
            "imagination": self.imagine,
            "agent": lambda: learner.update_agent(rollout),
        }


def forget_memory() -> None:
    """Free what is no longer used, and count the GPU's memory anew."""
    gc.collect()  # functions that refer to each other would keep their memory
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def measure_phases(
    config: Config, execution: Execution, clock: Clock, spaces: Spaces
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield each phase, its timing and FLOP; of replay sampling also the bytes that it reads and writes."""
    never = apply_overrides(config, ["BasicSettings.Compile=never"])
    counted = Iteration(never, spaces, Execution(never.BasicSettings, execution.device)).phases()
    flop = {}
    for name, phase in counted.items():
        with FlopCounterMode(display=False) as counter:  # of products and convolutions
            phase()
        flop[name] = counter.get_total_flops()
    del counted, phase
    forget_memory()
    iteration = Iteration(config, spaces, execution)
    for name, phase in iteration.phases().items():
        seconds = clock.measure(phase)
        median = statistics.median(seconds)
        rates = {"flop": flop[name], "flop_per_s": flop[name] / median}
        row = {"median_s": median, "min_s": min(seconds), "max_s": max(seconds)} | rates
        if name == "replay sampling":
            row["bytes_per_s"] = 2 * sum(x.nbytes for x in (*iteration.windows, *iteration.contexts)) / median
        yield name, row


class TimeLimit:
    """A request to stop the training loop that comes when `seconds` have passed."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def signal(self) -> str | None:
        """What asks to stop; None while nothing does."""
        return "the time limit" if time.monotonic() >= self.end else None


class EndOfTrace:
    """A request to stop the training loop after `steps` that first ends a recording: without the saving.

    Args:
        run: that trains. steps: to record at least. trace: that records. clock: of the run's device.

    Attributes:
        recorded: steps; 0 until the recording has ended.
    """

    def __init__(self, run: TrainingRun, steps: int, trace: profile, clock: Clock) -> None:
        self.run, self.start, self.steps, self.trace, self.clock = run, run.step, steps, trace, clock
        self.recorded = 0
        trace.start()

    @property
    def signal(self) -> str | None:
        """What asks to stop; None while nothing does."""
        done = self.run.step - self.start
        if done < self.steps:
            return None
        if not self.recorded:
            self.recorded = done
            self.clock.now()  # the kernels of these steps have all run
            self.trace.stop()
        return "the end of the recording"


def end_to_end(
    config: Config, steps: int, loop: Callable[[TrainingRun, Any, tqdm], bool], end: float = math.inf
) -> dict[str, float]:
    """Environment steps per second of the real training loop after its warm-up.

    Counts everything: acting, emulator, storing, both updates, logs and one checkpoint. On a GPU also
    the peak memory beside the replay buffer, and the share of the time in which the GPU is idle: the
    kernels of some further steps are recorded, and compared with the time of a step without recording.

    Args:
        config: of the run. steps: that are timed. loop: train.py's.
        end: of time.monotonic, when it stops; half of the time until then is for the warm-up.

    Returns:
        The figures; none if no step was finished in time.
    """
    config = apply_overrides(config, ["JointTrainAgent.SaveEverySteps=1_000_000"])

    def train_on(run: TrainingRun, more: int, seconds: float) -> None:
        config.JointTrainAgent.SampleMaxSteps = run.step + more
        loop(run, TimeLimit(seconds), tqdm(disable=True))

    forget_memory()
    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory("benchmark", Path(folder))
        with contextlib.closing(TrainingRun(config, directory, StateStore(directory.state), None)) as run:
            clock = Clock(run.execution.device, 1, 0)
            half = (end - time.monotonic()) / 2
            train_on(run, config.JointTrainAgent.BufferWarmUp + steps, half)
            before, is_warm = run.step, run.is_warm
            seconds = clock.once(functools.partial(train_on, run, steps, half))
            if run.step == before or not is_warm:
                return {}
            rate = (run.step - before) / seconds
            figures = {"env_steps_per_s": rate}
            if clock.device.type == "cuda":
                stored = run.replay.nbytes if run.replay.device == clock.device else 0
                reserved = torch.cuda.max_memory_reserved(clock.device)
                figures["memory_beside_replay_bytes"] = reserved - stored
                traced = min(steps, TRACED_STEPS)
                trace = profile(activities=[ProfilerActivity.CUDA])
                request = EndOfTrace(run, traced, trace, clock)
                config.JointTrainAgent.SampleMaxSteps = run.step + traced + config.JointTrainAgent.NumEnvs
                loop(run, request, tqdm(disable=True))
                busy = sum(event.self_device_time_total for event in trace.key_averages()) / 1e6
                figures["host_wait_share"] = max(0.0, 1 - rate * busy / request.recorded)
    return figures


def evaluation_speed(config: Config, steps: int) -> dict[str, float]:
    """Environment steps per second of an evaluation by an untrained agent, all its environments together."""
    execution = Execution(config.BasicSettings, resolve_device(config.BasicSettings.device))
    seed, num_envs = config.BasicSettings.Seed, config.Evaluation.NumEnvs
    environment = evaluation_environment(config, num_envs, seed)
    warm_up = config.JointTrainAgent.ActingContextLength + config.BasicSettings.GraphWarmUpCalls + 1
    rounds = max(1, steps // num_envs)
    with contextlib.closing(environment):
        models = make_models(config, environment.spaces, execution.device)
        policy = EvaluationPolicy(config, TrainedModels(*models), num_envs, execution, seed, greedy=False)
        played = play(policy, environment, environment.reset(), config.Environment.MaxFaults)
        deque(itertools.islice(played, warm_up), maxlen=0)
        start = time.perf_counter()
        deque(itertools.islice(played, rounds), maxlen=0)
        return {"evaluation_steps_per_s": rounds * num_envs / (time.perf_counter() - start)}
