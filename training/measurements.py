"""What benchmark.py measures: phases of an iteration, the device's own limits, the whole loop."""

from __future__ import annotations

import contextlib
import gc
import itertools
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from agents import make_models
from compute.execution import Execution
from compute.random_streams import RandomStreams
from configuration.loading import apply_overrides
from configuration.schema import Config
from configuration.spaces import Spaces
from evaluation.episodes import evaluation_environment, play
from evaluation.policies import EvaluationPolicy
from replay_buffer import ReplayBuffer
from run_files.directory import RunDirectory
from run_files.states import StateStore
from sub_models.batch import Batch, Rollout
from training.learner import Learner, make_policy
from training.run import StopRequest, TrainingRun
from utils import UserError, resolve_device

COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 32}
TRACED_STEPS = 500  # at most, of the loop whose kernels are recorded

Loop = Callable[[TrainingRun, StopRequest, tqdm], bool]  # train.py's: whether it came to its end


@dataclass(frozen=True)
class Timing:
    """Wall-clock seconds of repeated calls, the device waited for after each."""

    median_s: float
    min_s: float
    max_s: float


class Clock:
    """Times functions on a device.

    Args:
        device: waited for before each reading of the clock.
        repeats: counted calls. warm_up: calls before them.
    """

    def __init__(self, device: torch.device, repeats: int, warm_up: int) -> None:
        self.device, self.repeats, self.warm_up = device, repeats, warm_up

    def wait(self) -> None:
        """Until the device has done all its work."""
        if self.device.type != "cpu":
            torch.get_device_module(self.device).synchronize()

    def once(self, function: Callable[[], Any]) -> float:
        """Seconds of one call."""
        self.wait()
        start = time.perf_counter()
        function()
        self.wait()
        return time.perf_counter() - start

    def measure(self, function: Callable[[], Any]) -> Timing:
        """Seconds of `repeats` calls after `warm_up` of them."""
        for _ in range(self.warm_up):
            function()
        seconds = [self.once(function) for _ in range(self.repeats)]
        return Timing(statistics.median(seconds), min(seconds), max(seconds))

    def fastest_in_turn(self, functions: list[Callable[[], Any]]) -> list[float]:
        """Seconds of the fastest of `repeats` calls of each function, called in turn after the warm-up."""
        for _ in range(self.warm_up):
            for function in functions:
                function()
        rounds = [[self.once(function) for function in functions] for _ in range(self.repeats)]
        return [min(seconds) for seconds in zip(*rounds, strict=True)]


def product_rate(clock: Clock, shape: tuple[int, int, int], dtype: torch.dtype, calls: int = 20) -> float:
    """FLOP/s of random matrix products (m×k)·(k×n), the best of the repeats: a peak."""
    m, k, n = shape
    a = torch.randn(m, k, device=clock.device, dtype=dtype)
    b = torch.randn(k, n, device=clock.device, dtype=dtype)

    def multiply() -> None:
        for _ in range(calls):
            a @ b

    return calls * 2 * m * k * n / clock.measure(multiply).min_s


def copy_bandwidth(clock: Clock) -> float:
    """Bytes per second, read plus written, of a large copy within the device's memory; the best."""
    source = torch.ones(COPY_BYTES.get(clock.device.type, 1 << 28), dtype=torch.uint8, device=clock.device)
    target = torch.empty_like(source)
    return 2 * source.numel() / clock.measure(lambda: target.copy_(source)).min_s


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
        task = config.JointTrainAgent
        self.replay = self.fill_replay(spaces)
        self.windows = self.sample(task.BatchSize, task.BatchLength)
        self.contexts = self.sample(task.ImagineBatchSize, task.ImagineContextLength)
        self.rollout: Rollout | None = None
        self._start = execution.graph(execution.autocast(execution.compile(self.start_imagination)))
        frame = self.windows.observation[: task.NumEnvs, 0]
        self.frame = frame
        for _ in range(task.ActingContextLength):
            self.policy.act(frame)

    def fill_replay(self, spaces: Spaces) -> ReplayBuffer:
        """A replay buffer of random steps, a few windows long."""
        task, rng = self.config.JointTrainAgent, np.random.default_rng(0)
        rows = 4 * max(task.BatchLength, task.ImagineContextLength)
        replay = ReplayBuffer(rows, task.NumEnvs, spaces, self.execution.device)
        shape = (task.NumEnvs, *spaces.observation.shape)
        is_image = spaces.observation.kind == "image"
        for _ in range(rows):
            observation = (
                rng.integers(256, size=shape, dtype=np.uint8) if is_image else rng.normal(size=shape)
            )
            action = self.learner.agent.actions.uniform(
                torch.rand(task.NumEnvs, self.learner.agent.actions.noise_size)
            )
            reward, termination = rng.integers(2, size=task.NumEnvs), rng.random(task.NumEnvs) < 0.01
            replay.append(torch.from_numpy(observation), action, reward, termination)
        return replay

    def sample(self, batch_size: int, length: int) -> Batch:
        """Windows from the replay buffer."""
        return self.replay.sample(batch_size, length, self.streams.generator("benchmark"))

    def sample_all(self) -> None:
        """Draw what one iteration draws from the replay buffer."""
        task = self.config.JointTrainAgent
        self.sample(task.BatchSize, task.BatchLength)
        self.sample(task.ImagineBatchSize, task.ImagineContextLength)

    def update_world_model(self) -> None:
        """One world-model update."""
        self.learner.update_world_model(self.windows)

    def imagine(self) -> None:
        """One imagination."""
        self.rollout = self.learner.imagine(self.contexts)

    def encode_context(self) -> None:
        """The part of an imagination that does not depend on the horizon."""
        model = self.learner.world_model
        noise = self.streams.uniform("benchmark", *self.contexts.reward.shape, model.posterior_noise_size)
        self._start(self.contexts.observation, self.contexts.action, noise)

    @torch.no_grad()
    def start_imagination(self, observation: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        """The hidden state after a context."""
        horizon = self.config.JointTrainAgent.ImagineBatchLength
        return self.learner.world_model.start(observation, action, noise, horizon).hidden

    def update_agent(self) -> None:
        """One agent update on the last rollout."""
        self.learner.update_agent(self.rollout)

    def act(self) -> None:
        """One action per environment."""
        self.policy.act(self.frame)

    def phases(self) -> dict[str, Callable[[], None]]:
        """What is timed, in the order of an iteration."""
        return {
            "acting": self.act,
            "replay sampling": self.sample_all,
            "world model": self.update_world_model,
            "imagination": self.imagine,
            "agent": self.update_agent,
        }


class ByteCounter(TorchDispatchMode):
    """Counts the bytes that operations read and write, as if nothing stayed in a cache.

    Views and allocations count nothing; of a table that rows are picked from, only those rows.
    """

    PICKING = ("index", "index_select", "gather", "embedding")

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and count it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if not func.is_view and not name.startswith(("empty", "new_empty", "detach", "_unsafe_view")):
            read = result if name in self.PICKING else (args, kwargs)
            for tensor in pytree.tree_leaves((read, result)):
                self.total += tensor.nbytes if isinstance(tensor, Tensor) else 0
        return result


def count_work(function: Callable[[], Any]) -> dict[str, int]:
    """Floating-point operations of the products and convolutions in one call, and bytes read and written."""
    with FlopCounterMode(display=False) as counter, ByteCounter() as traffic:
        function()
    return {"flop": counter.get_total_flops(), "bytes": traffic.total}


def measure_phases(
    config: Config, execution: Execution, clock: Clock, spaces: Spaces
) -> dict[str, dict[str, float]]:
    """Timing of each phase, its FLOP and the bytes that it moves."""
    never = apply_overrides(config, ["BasicSettings.Compile=never"])
    counted = Iteration(never, spaces, Execution(never.BasicSettings, execution.device))
    work = {name: count_work(phase) for name, phase in counted.phases().items()}
    del counted
    gc.collect()  # its functions refer to each other, and would keep their memory
    if clock.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(clock.device)
    iteration = Iteration(config, spaces, execution)
    rows = {}
    for name, phase in iteration.phases().items():
        timing = clock.measure(phase)
        rates = {f"{key}_per_s": value / timing.median_s for key, value in work[name].items()}
        rows[name] = asdict(timing) | work[name] | rates
    return rows


def end_to_end(config: Config, steps: int, loop: Loop) -> dict[str, float]:
    """Environment steps per second of the real training loop after its warm-up.

    Counts everything: acting, emulator, storing, both updates, logs and one checkpoint. On a GPU
    also the most memory it took beside the replay buffer, and the share of the time in which it runs
    nothing: the kernels of some further steps are recorded, and compared with the time that a step
    took when nobody looked.
    """
    task = config.JointTrainAgent
    warm = task.BufferWarmUp + steps
    short = apply_overrides(
        config, [f"JointTrainAgent.SampleMaxSteps={warm}", "JointTrainAgent.SaveEverySteps=1_000_000"]
    )
    with tempfile.TemporaryDirectory() as folder:
        directory = RunDirectory("benchmark", Path(folder))
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        run = TrainingRun(short, directory, StateStore(directory.state), None)
        try:
            with tqdm(total=warm, disable=True) as bar:
                stop = StopRequest()
                finished = loop(run, stop, bar)
                start = time.perf_counter()
                finished = finished and train_on(run, steps, stop, bar, loop)
                figures = {"env_steps_per_s": steps / (time.perf_counter() - start)}
                if finished and run.execution.device.type == "cuda":
                    figures["memory_beside_replay_bytes"] = memory_beside_replay(run)
                    traced = min(steps, TRACED_STEPS)
                    with profile(activities=[ProfilerActivity.CUDA]) as trace:
                        finished = train_on(run, traced, stop, bar, loop)
                    busy = sum(event.self_device_time_total for event in trace.key_averages()) / 1e6
                    figures["host_wait_share"] = max(0.0, 1 - figures["env_steps_per_s"] * busy / traced)
        finally:
            run.close()
    if not finished:
        raise UserError(f"stopped by {stop.signal} before the {steps} steps were measured")
    return figures


def memory_beside_replay(run: TrainingRun) -> int:
    """Bytes of the GPU that a run has reserved at most, without those of its replay buffer."""
    device = run.execution.device
    stored = run.replay.nbytes if run.replay.device == device else 0
    return torch.cuda.max_memory_reserved(device) - stored


def train_on(run: TrainingRun, steps: int, stop: StopRequest, bar: tqdm, loop: Loop) -> bool:
    """Train `steps` more and wait for the device; whether nothing stopped it."""
    run.config.JointTrainAgent.SampleMaxSteps = run.step + steps
    finished = loop(run, stop, bar)
    Clock(run.execution.device, 1, 0).wait()
    return finished


def evaluation_speed(config: Config, steps: int) -> dict[str, float]:
    """Environment steps per second of an evaluation by an untrained agent, all its environments together."""
    execution = Execution(config.BasicSettings, resolve_device(config.BasicSettings.device))
    seed, num_envs = config.BasicSettings.Seed, config.Evaluation.NumEnvs
    environment = evaluation_environment(config, num_envs, seed)
    warm_up = config.JointTrainAgent.ActingContextLength + config.BasicSettings.GraphWarmUpCalls + 1
    rounds = max(1, steps // num_envs)
    with contextlib.closing(environment):
        models = make_models(config, environment.spaces, execution.device)
        policy = EvaluationPolicy(config, (*models, False), num_envs, execution, seed, greedy=False)
        played = play(policy, environment, environment.reset(), config.Environment.MaxFaults)
        deque(itertools.islice(played, warm_up), maxlen=0)
        start = time.perf_counter()
        deque(itertools.islice(played, rounds), maxlen=0)
        return {"evaluation_steps_per_s": rounds * num_envs / (time.perf_counter() - start)}


def horizon_growth(
    config: Config, clock: Clock, spaces: Spaces, horizons: list[int]
) -> dict[int, dict[str, float]]:
    """Seconds of imagination by horizon, with and without the context's share.

    The horizons take turns and the fastest turn of each counts: a ratio of medians that were
    measured one after the other follows what else the machine does. Turns imagine about the same
    number of steps, since a long one finds no quiet moment as often as a short one.
    """
    longest = config.JointTrainAgent.ImagineContextLength + max(horizons)
    turns: list[Callable[[], None]] = []
    calls: list[int] = []
    for horizon in horizons:
        changed = apply_overrides(
            config,
            [
                f"JointTrainAgent.ImagineBatchLength={horizon}",
                f"Models.WorldModel.TransformerMaxLength={max(longest, config.JointTrainAgent.BatchLength)}",
            ],
        )
        iteration = Iteration(changed, spaces, Execution(changed.BasicSettings, clock.device))
        calls += [max(1, max(horizons) // horizon)] * 2
        turns += [repeated(function, calls[-1]) for function in (iteration.imagine, iteration.encode_context)]
    fastest = [seconds / times for seconds, times in zip(clock.fastest_in_turn(turns), calls, strict=True)]
    context = min(fastest[1::2])  # the same work at every horizon
    return {
        horizon: {"imagination_s": whole, "without_context_s": whole - context}
        for horizon, whole in zip(horizons, fastest[::2], strict=True)
    }


def repeated(function: Callable[[], None], times: int) -> Callable[[], None]:
    """`function`, called several times."""

    def run() -> None:
        for _ in range(times):
            function()

    return run


def batch_growth(config: Config, clock: Clock, spaces: Spaces, sizes: list[int]) -> dict[int, float]:
    """Seconds of imagination by the number of imagined trajectories."""
    rows = {}
    for size in sizes:
        changed = apply_overrides(config, [f"JointTrainAgent.ImagineBatchSize={size}"])
        iteration = Iteration(changed, spaces, Execution(changed.BasicSettings, clock.device))
        rows[size] = clock.measure(iteration.imagine).median_s
    return rows
