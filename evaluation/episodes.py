"""Evaluates saved agents by the code path that training acts with."""

from __future__ import annotations

import dataclasses
import logging
import re
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from agents import Policy, make_models
from compute.execution import Execution
from compute.random_streams import RandomStreams, derive_seed
from configuration.loading import load_saved_config
from configuration.schema import Config
from configuration.spaces import ActionSpec, ObservationSpec, Spaces
from env_wrapper import EnvironmentFault, VectorEnvironment, make_environment
from evaluation.tables import Episode
from run_files.directory import find_run
from run_files.weights import checkpoint_files, list_checkpoints, load_into, load_weights
from sub_models import storm_checkpoint
from utils import UserError, resolve_device

log = logging.getLogger(__name__)

SEED_RANGE = 2**31 - 1
STEP = re.compile(r"[0-9]{1,15}")
Weights = dict[str, Tensor]


def quotas(num_episodes: int, num_envs: int) -> np.ndarray:
    """Episodes that each environment plays: nearly equal shares, int (num_envs,)."""
    return np.array(
        [num_episodes // num_envs + (index < num_episodes % num_envs) for index in range(num_envs)]
    )


def evaluate(
    policy: Policy,
    environment: VectorEnvironment,
    num_episodes: int,
    first_to_finish: bool = False,
    on_step: Callable[[np.ndarray, int], None] | None = None,
    max_faults: int = 1,
) -> list[Episode]:
    """Play whole episodes.

    Every environment plays a fixed quota: stopping at the first `num_episodes` to finish, as the
    STORM release does (`first_to_finish`), would favour short episodes.

    When an environment fails, the episodes under way are dropped and begun anew.

    Args:
        policy: fresh, its context empty. environment: of the same number of environments.
        on_step: called with the frames uint8 (N, H, W, C) and the number of finished episodes.
        max_faults: environment faults in a row that are too many.

    Raises:
        UserError: an environment fails again and again.
    """
    left = quotas(num_episodes, environment.num_envs)
    episodes: list[Episode] = []
    observation, faults = environment.reset(), 0
    while len(episodes) < num_episodes:
        if on_step is not None:
            on_step(observation, len(episodes))
        environment.start_step(policy.act(observation))
        try:
            result = environment.finish_step()
        except EnvironmentFault as fault:
            observation, faults = fault.observation, faults + 1
            _drop_episodes(policy, fault, faults, max_faults)
            continue
        observation, faults = result.observation, 0
        for index in np.flatnonzero(result.episode_end):
            if first_to_finish or left[index] > 0:
                left[index] -= 1
                score, length = result.episode_return[index], result.episode_length[index]
                episodes.append(Episode(float(score), int(length)))
    return episodes[:num_episodes]


def _drop_episodes(policy: Policy, fault: EnvironmentFault, faults: int, max_faults: int) -> None:
    """Go on after the last of `faults` in a row; UserError if they are too many."""
    if faults >= max_faults:
        raise UserError(f"{faults} environment faults in a row, the last one: {fault}") from fault
    log.warning("%s; its episodes are begun anew on seeds %s", fault, fault.seeds)
    policy.drop_last_step()


def summarise(episodes: list[Episode]) -> tuple[float, float]:
    """Mean and standard deviation (of the sample, 0 for one episode) of the returns."""
    scores = [episode.score for episode in episodes]
    return statistics.fmean(scores), statistics.stdev(scores) if len(scores) > 1 else 0.0


def evaluation_environment(
    config: Config, num_envs: int, seed: int, release_quirks: bool = False
) -> VectorEnvironment:
    """Environments for evaluation: whole episodes, seeded apart from training's."""
    return make_environment(
        config.BasicSettings.env_name,
        dataclasses.replace(config.Environment, LifeLossTermination=False),
        config.BasicSettings.ImageSize,
        num_envs,
        derive_seed(seed, "evaluation environment") % SEED_RANGE,
        release_quirks,
    )


def read_checkpoint(directory: Path, step: int) -> tuple[list[Weights], bool]:
    """Weights of world model and agent by our names, and whether the original STORM wrote them."""
    both, original = [], False
    for path in checkpoint_files(directory, step):
        weights = load_weights(path)
        if storm_checkpoint.is_original(weights):
            original = True
            weights = storm_checkpoint.convert(weights, str(path))
        both.append(weights)
    return both, original


def load_models(
    config: Config, spaces: Spaces, execution: Execution, directory: Path, step: int
) -> tuple[nn.Module, nn.Module, bool]:
    """World model and agent of a checkpoint, ours or the original STORM's.

    Returns:
        Both models, and whether they are the original STORM's, which act without seeing the
        current frame.
    """
    weights, original = read_checkpoint(directory, step)
    models = make_models(config, spaces, execution.device)
    for model, named, path in zip(models, weights, checkpoint_files(directory, step), strict=True):
        load_into(model, named, str(path))
    return *models, original


def make_evaluation_policy(
    config: Config,
    models: tuple[nn.Module, nn.Module, bool],
    num_envs: int,
    execution: Execution,
    seed: int,
    greedy: bool,
) -> Policy:
    """A fresh policy with fixed weights."""
    world_model, agent, original = models
    policy = Policy(
        world_model,
        agent,
        num_envs,
        config.JointTrainAgent.ActingContextLength,
        RandomStreams(derive_seed(seed, "evaluation"), execution.device),
        greedy=greedy,
        blind=original or config.BasicSettings.ReleaseQuirks,
        fixed_weights=True,
    )
    return policy.prepare(execution)


def choose_steps(directory: Path, which: str) -> list[int]:
    """Checkpoint steps that `-checkpoints` asks for: all, last, or one step.

    Raises:
        UserError: none saved, or not that one.
    """
    if which not in ("all", "last") and not STEP.fullmatch(which):
        raise UserError(f"-checkpoints {which[:80]!r}: must be all, last or a step such as 100000")
    steps = list_checkpoints(directory)
    if which in ("all", "last") and steps:
        return steps if which == "all" else steps[-1:]
    step = int(which) if STEP.fullmatch(which) else 0
    checkpoint_files(directory, step)
    return [step]


def load_policy(
    run_name: str,
    checkpoint: str = "last",
    num_envs: int = 1,
    device: str = "auto",
    greedy: bool | None = None,
) -> Policy:
    """The agent of a finished or running run, ready to act on frames.

        policy = load_policy("Boxing-STORM-seed_0")
        action = policy.act(frames)  # uint8 (num_envs, 64, 64, 3) → int64 (num_envs,)

    Args:
        checkpoint: "last" or a step. greedy: take the most likely action (None: as the run's
            Evaluation.Greedy says).

    Raises:
        UserError: no such run or checkpoint.
    """
    run = find_run(run_name)
    config = load_saved_config(run.config_file)
    execution = Execution(config.BasicSettings, resolve_device(device))
    step = choose_steps(run.checkpoints, checkpoint)[0]
    (_, agent_weights), _ = read_checkpoint(run.checkpoints, step)
    output = f"actor.{3 * config.Models.Agent.NumLayers}.bias"
    if output not in agent_weights:
        raise UserError(f"{checkpoint_files(run.checkpoints, step)[1]}: has no entry {output!r}")
    side = config.BasicSettings.ImageSize
    observation = ObservationSpec("image", (side, side, 3))
    spaces = Spaces(observation, ActionSpec("discrete", agent_weights[output].numel()))
    models = load_models(config, spaces, execution, run.checkpoints, step)
    greedy = config.Evaluation.Greedy if greedy is None else greedy
    return make_evaluation_policy(config, models, num_envs, execution, config.BasicSettings.Seed, greedy)
