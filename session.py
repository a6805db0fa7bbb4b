"""All that one training run consists of, and what of it is saved and restored."""

from __future__ import annotations

import signal
import time
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType

import numpy as np

from checkpoints import checkpoint_files, list_checkpoints, load_into, load_weights, save_weights
from config import RESUME_MAY_CHANGE, config_to_yaml, differences, load_saved_config
from config_schema import Config
from demonstrations import Demonstrations
from diagnostics import health, imagination_video
from env_wrapper import StepResult, make_environment
from evaluation import evaluate, evaluation_environment, make_evaluation_policy, summarise
from execution import Execution
from random_streams import RandomStreams, derive_seed
from replay_buffer import ReplayBuffer
from run_directory import RunDirectory, RunLogger, RunStatus, machine_facts
from run_state import SavedState, StateStore
from sub_models import storm_checkpoint
from sub_models.batch import Batch
from trainer import Learner, make_policy
from utils import UserError, resolve_device

VIDEO_FPS = 15.0  # agent steps a second, the speed of play at four frames a step


class StopRequest:
    """Set by SIGTERM, SIGINT or SIGUSR1; the loop then finishes its step and saves.

    A second SIGINT leaves at once.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self) -> None:
        self.signal: str | None = None
        for number in self.SIGNALS:
            signal.signal(number, self._request)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name


class Session:
    """A run: environment, replay, policy, learner, randomness, logs, and how far it has come.

    Args:
        config: of the run. directory: of the run, locked by this process.
        saved: the state to continue from, or None to start.
        store: where states are saved.
    """

    def __init__(
        self, config: Config, directory: RunDirectory, store: StateStore, saved: SavedState | None
    ) -> None:
        self.config, self.directory, self.store = config, directory, store
        settings, task = config.BasicSettings, config.JointTrainAgent
        device = resolve_device(settings.device)
        self.execution = Execution(settings, device)
        self.streams = RandomStreams(settings.Seed, device)
        self.streams.seed_default()
        self.environment = make_environment(
            settings.env_name,
            config.Environment,
            settings.ImageSize,
            task.NumEnvs,
            settings.Seed,
            release_quirks=settings.ReleaseQuirks,
        )
        self.learner = Learner(config, self.environment.num_actions, self.execution, self.streams)
        self.policy = make_policy(config, self.learner, self.execution, self.streams)
        self.replay = ReplayBuffer(
            task.BufferMaxLength // task.NumEnvs,
            task.NumEnvs,
            settings.ImageSize,
            config.Models.WorldModel.InChannels,
            device if settings.ReplayBufferOnGPU else resolve_device("cpu"),
        )
        self.demonstrations = self._load_demonstrations() if task.UseDemonstration else None
        self.logger = RunLogger(directory, saved.step + 1 if saved else 0)
        self.step = self.credits = self.faults = self.faults_in_a_row = 0
        self.elapsed = 0.0
        self.last_return = float("nan")
        self.started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.notes: list[str] = []
        self._clock = self._log_clock = self._save_clock = time.monotonic()
        self._log_step = 0
        if saved is None:
            self.observation = self.environment.reset()
            self._initialise_weights()
        else:
            self._restore(saved)

    # Learning.

    @property
    def is_warm(self) -> bool:
        """Whether the replay buffer holds enough to learn from."""
        return len(self.replay) >= self.config.JointTrainAgent.BufferWarmUp

    def learn(self) -> None:
        """The updates that one vector step has earned: per credit the world model, then the agent."""
        task = self.config.JointTrainAgent
        for _ in range(task.NumEnvs):
            self.credits += 1
            if self.credits % task.TrainDynamicsEverySteps == 0:
                self.learner.update_world_model(
                    self.sample("replay", task.BatchSize, task.DemonstrationBatchSize, task.BatchLength)
                )
            if self.credits % task.TrainAgentEverySteps == 0:
                self.learner.update_agent(
                    self.sample(
                        "contexts",
                        task.ImagineBatchSize,
                        task.ImagineDemonstrationBatchSize,
                        task.ImagineContextLength,
                    )
                )

    def sample(self, purpose: str, batch_size: int, demonstrations: int, length: int) -> Batch:
        """Windows from the replay buffer, and from the demonstrations if there are any, on the device."""
        generator = self.streams.generator(purpose, self.replay.device)
        batch = self.replay.sample(batch_size, length, generator)
        if self.demonstrations is not None:
            batch = Batch.concatenate(batch, self.demonstrations.sample(demonstrations, length, generator))
        if self.replay.device == self.execution.device:
            return batch
        return Batch(*map(self.execution.upload, vars(batch).values()))

    def _load_demonstrations(self) -> Demonstrations:
        settings, task = self.config.BasicSettings, self.config.JointTrainAgent
        if settings.trajectory_path is None:
            raise UserError("JointTrainAgent.UseDemonstration=True needs BasicSettings.trajectory_path")
        return Demonstrations.load(
            Path(settings.trajectory_path),
            self.environment.num_actions,
            settings.ImageSize,
            max(task.BatchLength, task.ImagineContextLength),
            self.replay.device,
        )

    def _initialise_weights(self) -> None:
        text = self.config.BasicSettings.pretrained_path
        if text is None:
            return
        path = Path(text)
        files = [path]
        if path.is_dir():
            folder = path / "ckpt" if (path / "ckpt").is_dir() else path
            steps = list_checkpoints(folder)
            files = list(checkpoint_files(folder, steps[-1] if steps else 0))
        for file in files:
            weights = load_weights(file)
            if storm_checkpoint.is_original(weights):
                weights = storm_checkpoint.convert(weights)
            is_agent = any(name.startswith("actor.") for name in weights)
            load_into(self.learner.agent if is_agent else self.learner.world_model, weights, str(file))

    # Logging.

    def record(self, result: StepResult) -> None:
        """Log the episodes that ended with this step."""
        tag = f"sample/{self.config.BasicSettings.env_name}"
        for index in np.flatnonzero(result.episode_end):
            self.last_return = float(result.episode_return[index])
            length = int(result.episode_length[index])
            self.logger.scalars(self.step, {f"{tag}_reward": self.last_return, f"{tag}_episode_steps": length})

    def log(self) -> None:
        """Log the latest update's metrics; stop if the updates have gone bad."""
        now = time.monotonic()
        speed = (self.step - self._log_step) / max(now - self._log_clock, 1e-9)
        self._log_clock, self._log_step = now, self.step
        values = self.learner.read_metrics() | {"replay_buffer/length": len(self.replay)}
        values |= {"replay_buffer/faults": self.faults, "time/steps_per_s": speed, "time/elapsed_s": self.seconds()}
        self.logger.scalars(self.step, values)
        self.learner.check_health(self.config.JointTrainAgent.MaxBadUpdates)

    def health_line(self) -> str | None:
        """One line on how learning goes, None before the first update."""
        metrics = self.learner.read_metrics()
        if not metrics:
            return None
        findings = health(metrics, self.config, self.environment.num_actions)
        self.logger.scalars(
            self.step, {f"health/{name}": float(text.startswith("ok")) for name, text in findings.items()}
        )
        return f"step {self.step}: " + "; ".join(f"{name} {text}" for name, text in findings.items())

    def seconds(self) -> float:
        """Wall-clock seconds of all processes of this run."""
        return self.elapsed + time.monotonic() - self._clock

    def evaluate(self) -> float:
        """Mean return of fresh episodes with the present weights; training's streams do not advance."""
        settings = self.config.Evaluation
        models = (self.learner.world_model, self.learner.agent, False)
        num_envs = min(settings.NumEnvs, settings.NumEpisodes)
        seed = derive_seed(self.config.BasicSettings.Seed, "evaluation while training", self.step)
        policy = make_evaluation_policy(self.config, models, num_envs, self.execution, seed, settings.Greedy)
        environment = evaluation_environment(self.config, num_envs, seed)
        mean, _ = summarise(evaluate(policy, environment, settings.NumEpisodes))
        environment.close()
        self.logger.scalars(self.step, {"eval/episode_avg_return": mean})
        return mean

    # Saving and restoring.

    def save_checkpoint(self, nominal_step: int) -> None:
        """Write the weights, named by their nominal step, and an imagination video."""
        for name in ("world_model", "agent"):
            save_weights(self.directory.checkpoints / f"{name}_{nominal_step}.pth", getattr(self.learner, name))
        task, evaluation = self.config.JointTrainAgent, self.config.Evaluation
        length = task.ImagineContextLength + task.ImagineBatchLength
        if self.replay.rows >= length:
            streams = RandomStreams(derive_seed(self.streams.seed, "video", nominal_step), self.execution.device)
            batch = self.replay.sample(
                evaluation.VideoWindows, length, streams.generator("windows", self.replay.device)
            ).to(self.execution.device)
            frames = imagination_video(self.learner.world_model, batch, task.ImagineContextLength, streams)
            self.logger.video("Imagine/predict_video", frames, self.step, VIDEO_FPS)

    def save_state(self, status: str) -> None:
        """Write all that is needed to continue as if nothing had happened."""
        self.store.save(self.step, self.state_dict(), self.replay)
        self._save_clock = time.monotonic()
        self.write_status(status)

    def write_status(self, status: str) -> None:
        """Write run.json."""
        self.directory.write_status(
            RunStatus(
                status=status,
                started=self.started,
                finished_step=self.step,
                sample_max_steps=self.config.JointTrainAgent.SampleMaxSteps,
                elapsed_s=round(self.seconds(), 1),
                **machine_facts(self.execution.device),
            )
        )

    def seconds_since_save(self) -> float:
        """Wall-clock seconds since this process last saved a state, or started."""
        return time.monotonic() - self._save_clock

    def state_dict(self) -> dict[str, object]:
        """Everything but the replay rows."""
        parts = ("learner", "streams", "policy", "environment", "logger")
        return {
            "step": self.step,
            "credits": self.credits,
            "faults": self.faults,
            "elapsed": self.seconds(),
            "last_return": self.last_return,
            "started": self.started,
            **{name: getattr(self, name).state_dict() for name in parts},
        }

    def _restore(self, saved: SavedState) -> None:
        state = saved.state
        self.notes += saved.notes
        for name in ("step", "credits", "faults", "elapsed", "last_return", "started"):
            setattr(self, name, state[name])
        for name in ("learner", "streams", "policy", "environment", "logger"):
            self.notes += getattr(self, name).load_state_dict(state[name]) or []
        saved.restore_rows(self.replay)
        self.observation = self.environment.observation
        self._log_step = self.step

    def close(self) -> None:
        """End the environment's processes and the logs."""
        self.environment.close()
        self.logger.close()


def check_resumable(config: Config, directory: RunDirectory) -> list[str]:
    """Compare the config with the saved one; lines on what changed harmlessly.

    Raises:
        UserError: settings that change the model or the data differ, each named.
    """
    changed = differences(load_saved_config(directory.config_file), config)
    refused = [change for change in changed if change[0] not in RESUME_MAY_CHANGE]
    if refused:
        listed = "; ".join(f"{key} was {old}, now {new}" for key, old, new in refused)
        raise UserError(
            f"run {directory.name} exists with other settings ({listed}): give it those, another name "
            f"(BasicSettings.n=...), or BasicSettings.Restart=True to archive it and start over"
        )
    return [f"{key}: {old} → {new}" for key, old, new in changed if key != "BasicSettings.Restart"]


def open_session(config: Config, directory: RunDirectory) -> Session | None:
    """Start a run, or continue the one in `directory`; None if that one is finished.

    The directory must be locked. Lines for the user are in the session's `notes`.
    """
    store = StateStore(directory.state)
    notes: list[str] = []
    if config.BasicSettings.Restart and directory.exists():
        notes.append(f"archived the earlier run as {directory.archive()}")
    saved = None
    if directory.exists() and store.exists():
        notes += check_resumable(config, directory)
        saved = store.load()
        if saved.step >= config.JointTrainAgent.SampleMaxSteps:
            return None
        notes.append(f"continuing {directory.name} at step {saved.step}")
    elif directory.exists() and list_checkpoints(directory.checkpoints):
        raise UserError(
            f"run {directory.name} has checkpoints but no state to continue from; choose another "
            f"BasicSettings.n, or BasicSettings.Restart=True to archive it and start over"
        )
    session = Session(config, directory, store, saved)
    session.notes = notes + session.notes
    directory.save_config(config)
    if saved is None:
        session.logger.text("config", f"```yaml\n{config_to_yaml(config)}```")
    session.write_status("running")
    return session
