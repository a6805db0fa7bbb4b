"""Agents from checkpoints, ready to act."""

from __future__ import annotations

import gc
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from agents import ActorCritic, Policy, acts_blindly, make_models
from compute.execution import Execution
from compute.random_streams import RandomStreams, derive_seed
from configuration.loading import load_saved_config
from configuration.schema import Config
from configuration.spaces import ActionSpec, Spaces
from env_wrapper import VectorEnvironment
from evaluation.episodes import environment_spaces, evaluation_environment
from run_files.directory import RunDirectory, as_outputs, find_run, read_spaces
from run_files.weights import checkpoint_files, list_checkpoints, load_into, load_weights
from sub_models import storm_checkpoint
from sub_models.world_models import WorldModel
from utils import REPOSITORY, UserError, resolve_device

STEP = "[0-9]{1,15}"
WEIGHT_FILE = re.compile(rf"(?:world_model|agent)_({STEP})\.pth")
SHIPPED = REPOSITORY / "assets" / "agents"  # trained ones, each a folder with config.yaml and checkpoint


class TrainedModels(NamedTuple):
    """What a policy acts with."""

    world_model: WorldModel
    agent: ActorCritic
    is_original: bool = False  # of the original STORM, which does not see the present observation


class EvaluationPolicy(Policy):
    """A policy with fixed weights, and what it acts in.

    Args:
        config: of the run. models: as `load_models` gives them. num_envs: N. execution: device and precision.
        seed: of its own random streams. greedy: take the most likely action.
    """

    def __init__(
        self,
        config: Config,
        models: TrainedModels,
        num_envs: int,
        execution: Execution,
        seed: int,
        greedy: bool,
    ) -> None:
        world_model, agent, is_original = models
        if execution.graphs:
            gc.collect()  # an earlier policy and its graph refer to each other, and hold the card's memory
        super().__init__(
            world_model,
            agent,
            num_envs,
            config.JointTrainAgent.ActingContextLength,
            RandomStreams(derive_seed(seed, "evaluation"), execution.device),
            execution,
            greedy=greedy,
            blind=is_original or acts_blindly(config),
            fixed_weights=True,
        )
        self.config, self.seed = config, seed
        spec = world_model.spaces.observation
        self._expected = (spec.dtype, (num_envs, *spec.shape))

    def act(self, observation: Tensor | np.ndarray) -> np.ndarray:
        """Return actions (N, ...) on observations (N, *shape); raise ValueError for anything else."""
        dtype = str(getattr(observation, "dtype", type(observation).__name__)).removeprefix("torch.")
        shape = tuple(getattr(observation, "shape", ()))
        if (dtype, shape) != self._expected:
            raise ValueError(f"act() wants {' '.join(map(str, self._expected))}, found {dtype} {shape}")
        return super().act(observation)

    def make_environment(self) -> VectorEnvironment:
        """Return the N environments it acts in, preprocessed as in training and seeded apart from it.

        environment = policy.make_environment()
        frames = environment.reset()
        environment.start_step(policy.act(frames))
        frames = environment.finish_step().observation
        """
        quirks = self.config.BasicSettings.ReleaseQuirks
        return evaluation_environment(self.config, self.num_envs, self.seed, quirks)


class RandomPlay:
    """Acts uniformly at random, as a policy does.

    Args:
        num_envs: N. actions: those that there are. seed: of its own random stream.
    """

    def __init__(self, num_envs: int, actions: ActionSpec, seed: int) -> None:
        self.num_envs, self.actions = num_envs, actions
        self.generator = np.random.default_rng(seed)

    def act(self, observation: np.ndarray) -> np.ndarray:
        """Return actions (N, ...)."""
        if self.actions.kind == "discrete":
            return self.generator.integers(self.actions.size, size=self.num_envs)
        return self.generator.uniform(-1, 1, (self.num_envs, self.actions.size)).astype(np.float32)

    def drop_last_step(self) -> None:
        """Do nothing: there is no context."""


def load_models(
    config: Config, spaces: Spaces, execution: Execution, directory: Path, step: int
) -> TrainedModels:
    """Return the models of a checkpoint.

    Raise UserError if what the run saw and did, according to its run.json, is not `spaces`.
    """
    check_spaces(str(directory), read_spaces(directory.parent / "run.json") or spaces, spaces)
    models, by_original = make_models(config, spaces, execution.device), False
    for model, path in zip(models, checkpoint_files(directory, step), strict=True):
        weights, is_original = read_weights(path)
        load_into(model, weights, str(path))
        by_original |= is_original
    return TrainedModels(*models, by_original)


def check_spaces(agent: str, trained: Spaces, here: Spaces) -> None:
    """Raise UserError if what an agent saw and did is not what there is to see and do here."""
    if trained != here:
        raise UserError(f"{agent}: trained with {trained}, but here are {here}")


def read_weights(path: Path) -> tuple[dict[str, Tensor], bool]:
    """Return a weight file's tensors, by their names here, and whether the original STORM wrote it.

    Raise UserError for a file that cannot be read as such.
    """
    weights = load_weights(path)
    if not storm_checkpoint.is_original(weights):
        return weights, False
    return storm_checkpoint.convert(weights, str(path)), True


def choose_step(directory: Path, which: str = "last") -> int:
    """Return the checkpoint's step that `which` asks for: last, or a step.

    Raises:
        UserError: none saved, or not that one.
    """
    steps = list_checkpoints(directory)
    if which == "last":
        which = str(steps[-1] if steps else 0)
    if not re.fullmatch(STEP, which):
        raise UserError(f"checkpoint {which[:80]!r}: must be last or a step such as 100000")
    checkpoint_files(directory, int(which))  # complains if it is not there
    return int(which)


def load_policy(
    source: str | Path,
    checkpoint: str | int = "last",
    num_envs: int = 1,
    device: str = "auto",
    greedy: bool | None = None,
) -> EvaluationPolicy:
    """Return the agent of a finished or running run, ready to act on frames.

        policy = load_policy("Boxing-STORM-small")
        action = policy.act(frames)  # uint8 (num_envs, 64, 64, 3) → int64 (num_envs,)

    Args:
        source: name of a run in outputs/ of this folder or of the repository, or of an agent in
            assets/agents/; or a run's folder, a folder of checkpoints, or one of a checkpoint's files.
        checkpoint: "last" or a step, unless `source` is a file.
        greedy: take the most likely action (None: as the run's Evaluation.Greedy says).

    Raises:
        UserError: no such run or checkpoint, or one that cannot be used.
    """
    checkpoints, step_of_file = find_checkpoints(source)
    home = checkpoints if (checkpoints / "config.yaml").is_file() else checkpoints.parent
    config = load_saved_config(home / "config.yaml")
    step = choose_step(checkpoints, step_of_file or str(checkpoint))
    execution = Execution(config.BasicSettings, resolve_device(device))
    spaces = read_spaces(home / "run.json") or environment_spaces(config)
    models = load_models(config, spaces, execution, checkpoints, step)
    greedy = config.Evaluation.Greedy if greedy is None else greedy
    return EvaluationPolicy(config, models, num_envs, execution, config.BasicSettings.Seed, greedy)


def find_checkpoints(source: str | Path) -> tuple[Path, str | None]:
    """Return the folder of checkpoints that `load_policy`'s source names, and the step if it is a file."""
    path = as_outputs(source)
    file = WEIGHT_FILE.fullmatch(path.name)
    if file and path.is_file():
        return path.absolute().parent, file[1]
    if path.is_file():
        raise UserError(f"{path}: is not named world_model_<step>.pth or agent_<step>.pth")
    if (path / "config.yaml").is_file() or list_checkpoints(path):
        return path.absolute() / "ckpt" if (path / "ckpt").is_dir() else path.absolute(), None
    if path.name != str(path):
        raise UserError(f"no run or checkpoint in {path.absolute()}")
    here, run = RunDirectory(path.name), RunDirectory(path.name, REPOSITORY)
    if (shipped := SHIPPED / path.name).is_dir() and not here.outputs.is_dir() and not run.outputs.is_dir():
        return shipped, None
    found = run if run.outputs.is_dir() and not here.outputs.is_dir() else find_run(path.name)
    return found.checkpoints.absolute(), None
