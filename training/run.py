"""All that one training run consists of, and what of it is saved and restored."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compute.execution import Execution
from compute.memory_limits import check_replay_fits, is_out_of_memory
from compute.random_streams import RandomStreams, derive_seed
from compute.threads import use_threads
from configuration.schema import Config
from env_wrapper import StepResult, VectorEnvironment
from environments.single import ignored_settings
from environments.workers import IGNORED_SIGNALS
from evaluation.episodes import Stopped, evaluate, summarise
from evaluation.open_loop import comparison_video, open_loop
from evaluation.policies import EvaluationPolicy, TrainedModels, choose_step, find_checkpoints, read_weights
from replay_buffer import ReplayBuffer
from run_files.directory import RunDirectory
from run_files.loggers import RunLogger, find_logger
from run_files.manifest import read_json
from run_files.provenance import joined_facts, machine_facts, moves
from run_files.states import SavedState, StateStore
from run_files.weights import checkpoint_files, load_into, save_weights
from sub_models.batch import Batch
from training.demonstrations import load_demonstrations
from training.health import health
from training.learner import Learner, make_policy
from utils import Interrupt, UserError, resolve_device, silence

VIDEO_FPS = 15.0  # agent steps a second, the speed of play at four frames a step
# What is saved with a state: COUNTS as they are, PARTS through their state_dict, the data first.
COUNTS = (
    "step",
    "learned_steps",
    "faults",
    "elapsed",
    "cpu",
    "last_return",
    "started",
    "evaluation_due",
    "threads",
)
PARTS = ("environment", "learner", "streams", "policy", "logger")


class StopRequest:
    """Set by a signal that asks to stop: a key, a closed terminal, or a queue; the loop then saves.

    A second SIGINT leaves at once. Workers leave these signals to the run.
    """

    def __init__(self) -> None:
        self.signal: str | None = None
        for number in IGNORED_SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                signal.signal(number, self._request)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise Interrupt
        self.signal = signal.Signals(number).name
        if number == signal.SIGHUP:
            silence(only_terminal=True)  # there is none to print to


class TrainingRun:
    """A run: environment, replay, policy, learner, randomness, logs, and how far it has come.

    Args:
        config: of the run. directory: of the run, locked by this process.
        saved: the state to continue from, or None to start; with BasicSettings.Restart an earlier
            run is archived once everything that the new one needs is there.
        store: where states are saved.

    Raises:
        UserError: something that the config names is missing, unusable or too large.
    """

    plays = True  # in an environment, for its data

    def __init__(
        self, config: Config, directory: RunDirectory, store: StateStore, saved: SavedState | None
    ) -> None:
        self.config, self.directory, self.store = config, directory, store
        settings = config.BasicSettings
        self.notes: list[str] = []
        for name in settings.Loggers:
            find_logger(name)  # before anything is begun, or archived
        device = resolve_device(settings.device)
        self.execution = Execution(settings, device)
        self.threads = 0
        if saved is None:
            self.use_threads()
        self.streams = RandomStreams(settings.Seed, device)
        self.streams.seed_default()
        self._open_data(device)
        facts = machine_facts(device)
        earlier = {} if saved is None else read_json(directory.status_file)
        self._facts = joined_facts(earlier, facts)
        self.notes += moves(earlier, facts)
        spaces = self.environment.spaces
        self.learner = Learner(config, spaces, self.execution, self.streams)
        self.policy = make_policy(config, self.learner, self.execution, self.streams)
        self.demonstrations = self._load_demonstrations() if config.JointTrainAgent.UseDemonstration else None
        self.step = self.learned_steps = self.faults = self.faults_in_a_row = 0
        self.evaluation_due = False  # the evaluation of this step is still to be made
        self.elapsed = self.cpu = 0.0  # seconds, of the processes before this one
        self.last_return = float("nan")
        self.findings: dict[str, str] = {}  # on the health of learning, when last logged
        self.started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._clock = self._log_clock = self._save_clock = time.monotonic()
        self._cpu_clock = time.process_time()
        self._log_step = 0
        if saved is None:
            self.observation = self.environment.reset()
            self._initialise_weights()
            archived = directory.archive() if settings.Restart else None
            self.notes += [f"archived the earlier run as {archived}"] if archived else []
        self.logger = RunLogger(directory, config, saved.step + 1 if saved else 0)
        if saved is not None:
            self._restore(saved)

    def _open_data(self, device: torch.device) -> None:
        """Start the environment, and make room for what is seen in it."""
        settings, task, game = self.config.BasicSettings, self.config.JointTrainAgent, self.config.Environment
        self.notes += ignored_settings(settings.env_name, game)
        quirks = settings.ReleaseQuirks
        self.environment = VectorEnvironment(
            settings.env_name, game, settings.ImageSize, task.NumEnvs, settings.Seed, release_quirks=quirks
        )
        spaces, rows = self.environment.spaces, task.BufferMaxLength // task.NumEnvs
        where = device if settings.ReplayBufferOnGPU else torch.device("cpu")
        planned = ReplayBuffer(rows, task.NumEnvs, spaces, torch.device("meta"))
        check_replay_fits(task.BufferMaxLength, planned.nbytes, where)
        self.replay = ReplayBuffer(rows, task.NumEnvs, spaces, where)

    # Learning.

    @property
    def is_warm(self) -> bool:
        """Whether the replay buffer holds enough to learn from."""
        return len(self.replay) >= self.config.JointTrainAgent.BufferWarmUp

    def update_models(self) -> None:
        """Run the updates that are due: for each environment's step the world model's, then the agent's."""
        task = self.config.JointTrainAgent
        for _ in range(task.NumEnvs):
            self.learned_steps += 1
            if self.learned_steps % task.TrainDynamicsEverySteps == 0:
                self.learner.update_world_model(
                    self.sample("replay", task.BatchSize, task.DemonstrationBatchSize, task.BatchLength)
                )
            if self.learned_steps % task.TrainAgentEverySteps == 0:
                contexts = self.sample(
                    "contexts",
                    task.ImagineBatchSize,
                    task.ImagineDemonstrationBatchSize,
                    task.ImagineContextLength,
                )
                self.learner.update_agent(self.learner.imagine(contexts))

    def sample(self, purpose: str, batch_size: int, demonstrations: int, length: int) -> Batch:
        """Return windows from the replay buffer and the demonstrations, on the execution's device."""
        generator = self.streams.generator(purpose, self.replay.device)
        batch = self.replay.sample(batch_size, length, generator)
        if self.demonstrations is not None:
            batch = Batch.concatenate(batch, self.demonstrations.sample(demonstrations, length, generator))
        if self.replay.device == self.execution.device:
            return batch
        return Batch(*map(self.execution.upload, batch))

    def store_step(self, observation: Tensor, action: np.ndarray, result: StepResult) -> None:
        """Append a step to the replay buffer and go on to the next observation.

        Args:
            observation: what `action` was chosen on, (N, *shape), on the execution's device.
        """
        row = (action, result.reward, result.termination)
        if self.replay.device == self.execution.device:
            self.replay.append(observation, *map(self.execution.upload, row))
        else:
            self.replay.append(self.observation, *row)
        self.observation = result.observation

    def _load_demonstrations(self) -> ReplayBuffer:
        settings, task = self.config.BasicSettings, self.config.JointTrainAgent
        return load_demonstrations(
            Path(settings.trajectory_path),
            self.environment.spaces,
            max(task.BatchLength, task.ImagineContextLength),
            self.replay.device,
            self.config.Environment,
        )

    def _initialise_weights(self) -> None:
        text = self.config.BasicSettings.pretrained_path
        if text is None:
            return
        files: Sequence[Path] = [Path(text)]
        if files[0].is_dir() or not files[0].exists():
            folder, _ = find_checkpoints(text)
            files = checkpoint_files(folder, choose_step(folder))
        for file in files:
            weights, _ = read_weights(file)
            is_agent = any(name.startswith("actor.") for name in weights)
            load_into(self.learner.agent if is_agent else self.learner.world_model, weights, str(file))

    # Logging.

    def record(self, result: StepResult) -> None:
        """Log the episodes that ended with this step."""
        tag = f"sample/{self.config.BasicSettings.env_name}"
        for index in np.flatnonzero(result.episode_end):
            self.last_return = float(result.episode_return[index])
            length = int(result.episode_length[index])
            self.logger.scalars(
                self.step, {f"{tag}_reward": self.last_return, f"{tag}_episode_steps": length}
            )

    def log(self) -> None:
        """Log the means of the updates' metrics since the last time."""
        now = time.monotonic()
        speed = (self.step - self._log_step) / max(now - self._log_clock, 1e-9)
        self._log_clock, self._log_step = now, self.step
        values = self.learner.metrics.read() | self.data_metrics()
        self.findings = health(values, self.config, self.learner.agent.actions.entropy_range)
        values |= {f"health/{name}": float(text.startswith("ok")) for name, text in self.findings.items()}
        values |= {"time/steps_per_s": speed, "time/elapsed_s": self.seconds()}
        self.logger.scalars(self.step, values)

    def data_metrics(self) -> dict[str, float]:
        """Return what there is to say of the data by tag; waits for the device."""
        return {
            "replay_buffer/length": len(self.replay),
            "replay_buffer/recent_reward": self.replay.recent_reward(self.config.Health.RewardSteps),
            "environment/faults": self.faults,
        }

    def health_line(self) -> str | None:
        """Return one line on how learning went when it was last logged; None if neither model was updated."""
        if not self.findings:
            return None
        return f"step {self.step}: " + "; ".join(f"{name} {text}" for name, text in self.findings.items())

    def seconds(self) -> float:
        """Wall-clock seconds of all processes of this run."""
        return self.elapsed + time.monotonic() - self._clock

    def cpu_seconds(self) -> float:
        """CPU seconds of all processes of this run, without its environments' workers."""
        return self.cpu + time.process_time() - self._cpu_clock

    def evaluate(self, is_stopped: Callable[[], bool]) -> float | None:
        """Return the mean return of fresh episodes with the present weights; no stream advances.

        None if `is_stopped()` said so between two steps: the evaluation is then still due, as it is if
        it fails.
        """

        def look(*progress: object) -> None:
            if is_stopped():
                raise Stopped

        settings = self.config.Evaluation
        models = TrainedModels(self.learner.world_model, self.learner.agent)
        num_envs = min(settings.NumEnvs, settings.NumEpisodes)
        seed = derive_seed(self.config.BasicSettings.Seed, "evaluation while training", self.step)
        policy = EvaluationPolicy(self.config, models, num_envs, self.execution, seed, settings.Greedy)
        quirks, max_faults = self.config.BasicSettings.ReleaseQuirks, self.config.Environment.MaxFaults
        with contextlib.closing(policy.make_environment()) as environment:
            try:
                episodes = evaluate(policy, environment, settings.NumEpisodes, quirks, max_faults, look)
            except Stopped:
                return None
        self.evaluation_due = False
        mean, _ = summarise(episodes)
        self.logger.scalars(self.step, {"eval/episode_avg_return": mean})
        return mean

    # Saving and restoring.

    def save_checkpoint(self, nominal_step: int) -> None:
        """Write the weights, named by their nominal step, and of images an imagination video."""
        for name in ("world_model", "agent"):
            save_weights(
                self.directory.checkpoints / f"{name}_{nominal_step}.pth", getattr(self.learner, name)
            )
        task, evaluation = self.config.JointTrainAgent, self.config.Evaluation
        length = task.ImagineContextLength + task.ImagineBatchLength
        if self.replay.rows >= length and self.environment.spaces.observation.kind == "image":
            streams = RandomStreams(
                derive_seed(self.streams.seed, "video", nominal_step), self.execution.device
            )
            batch = self.replay.sample(
                evaluation.VideoWindows, length, streams.generator("windows", self.replay.device)
            ).to(self.execution.device)
            context = task.ImagineContextLength
            predicted = open_loop(self.learner.world_model, batch, context, streams).prediction
            frames = comparison_video(batch.observation, predicted, context)
            self.logger.video(self.step, "Imagine/predict_video", frames, VIDEO_FPS)

    def save_state(self, status: str) -> None:
        """Write all that is needed to continue as if nothing had happened."""
        self.store.save(self.step, self.state_dict(), self.replay)
        self._save_clock = time.monotonic()
        self.write_status(status)

    def write_status(self, status: str) -> None:
        """Write run.json."""
        self.directory.write_status(
            {
                "status": status,
                "started": self.started,
                "finished_step": self.step,
                "sample_max_steps": self.config.JointTrainAgent.SampleMaxSteps,
                "elapsed_s": round(self.seconds(), 1),
                "cpu_s": round(self.cpu_seconds(), 1),
                "spaces": asdict(self.environment.spaces),
                **self._facts,
            }
        )

    def seconds_since_save(self) -> float:
        """Wall-clock seconds since this process last saved a state, or started."""
        return time.monotonic() - self._save_clock

    def state_dict(self) -> dict[str, object]:
        """Everything but the replay rows."""
        counts = {name: getattr(self, name) for name in COUNTS}
        clocks = {"elapsed": self.seconds(), "cpu": self.cpu_seconds()}
        return counts | clocks | {name: getattr(self, name).state_dict() for name in PARTS}

    def _restore(self, saved: SavedState) -> None:
        self.notes += saved.notes
        try:
            self._take_state(saved.state)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UserError(
                f"{saved.path}: does not fit this program ({reason}); "
                f"BasicSettings.Restart=True archives the run and starts over"
            ) from error
        saved.restore_rows(self.replay)
        self.observation = self.environment.observation
        self._log_step = self.step

    def _take_state(self, state: dict[str, Any]) -> None:
        for name in COUNTS:
            value = state[name]
            if type(value) is not type(getattr(self, name)):
                raise TypeError(f"{name} is {type(value).__name__}")
            setattr(self, name, value)
        self.use_threads()
        for name in PARTS:
            self.notes += getattr(self, name).load_state_dict(state[name]) or []

    def use_threads(self) -> None:
        """Compute with the number of CPU threads that the config gives, or that the run had before."""
        task = self.config.JointTrainAgent
        self.notes += use_threads(self.config, task.BatchSize * task.BatchLength, self.threads)
        # A CPU's results depend on it; a GPU's run may go on on a CPU, which then chooses.
        self.threads = torch.get_num_threads() if self.execution.device.type == "cpu" else 0

    def close(self) -> None:
        """End the environment's processes and the logs."""
        self.environment.close()
        self.logger.close()
