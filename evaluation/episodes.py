"""Plays whole episodes, by the code path that training acts with."""

from __future__ import annotations

import contextlib
import logging
import statistics
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from agents import Policy
from compute.random_streams import derive_seed
from configuration.schema import Config
from configuration.spaces import Spaces
from env_wrapper import SEED_RANGE, EnvironmentFault, StepResult, VectorEnvironment
from evaluation.tables import Episode
from utils import UserError

log = logging.getLogger(__name__)

OnStep = Callable[[list[Episode], np.ndarray], None]


class Step(NamedTuple):
    """One step of all N environments."""

    observation: np.ndarray  # (N, ...), what the action was chosen on
    action: np.ndarray  # (N, ...)
    result: StepResult


def environment_spaces(config: Config) -> Spaces:
    """Return what is observed and done in a config's environment."""
    with contextlib.closing(evaluation_environment(config, 1, config.BasicSettings.Seed)) as environment:
        return environment.spaces


class Stopped(Exception):
    """Raised by whoever watches an evaluation, to end it."""


def evaluation_environment(
    config: Config,
    num_envs: int,
    seed: int,
    release_quirks: bool = False,
    purpose: str = "evaluation environment",
) -> VectorEnvironment:
    """Return environments for whole episodes, seeded apart from training's and by purpose."""
    settings = config.BasicSettings
    if config.Task == "VideoPrediction":
        raise UserError(f"run {settings.n}: has no agent that acts, it was trained on clips of video")
    seed = derive_seed(seed, purpose) % SEED_RANGE
    return VectorEnvironment(
        settings.env_name, config.Environment, settings.ImageSize, num_envs, seed, release_quirks
    )


def play(
    policy: Policy, environment: VectorEnvironment, observation: np.ndarray, max_faults: int = 1
) -> Iterator[Step | None]:
    """Let a policy act, without end: yield each step, None for one whose environment failed.

    All episodes under way are then begun anew.

    Args:
        policy: fresh, its context empty. observation: the present one.
        max_faults: environment faults in a row that are too many.

    Raises:
        UserError: an environment fails again and again.
    """
    faults = 0
    while True:
        action = policy.act(observation)
        environment.start_step(action)
        try:
            result = environment.finish_step()
        except EnvironmentFault as fault:
            faults += 1
            if faults >= max_faults:
                raise UserError(f"{faults} environment faults in a row, the last one: {fault}") from fault
            log.warning("%s; its episodes are begun anew on seeds %s", fault, environment.seeds)
            policy.drop_last_step()
            observation = environment.observation
            yield None
        else:
            yield Step(observation, action, result)
            observation, faults = result.observation, 0


def quotas(num_episodes: int, num_envs: int) -> np.ndarray:
    """Return the episodes that each environment plays: nearly equal shares, int (num_envs,)."""
    return (num_episodes + num_envs - 1 - np.arange(num_envs)) // num_envs


def evaluate(
    policy: Policy,
    environment: VectorEnvironment,
    num_episodes: int,
    first_to_finish: bool = False,
    max_faults: int = 1,
    on_step: OnStep | None = None,
) -> list[Episode]:
    """Play whole episodes and return them.

    Every environment plays a fixed quota: stopping at the first `num_episodes` to finish, as the
    STORM release does (`first_to_finish`), would favour short episodes.

    Args:
        policy: fresh, its context empty. environment: of the same number of environments.
        max_faults: environment faults in a row that are too many.
        on_step: called before each step with the episodes finished so far and how many each
            environment has left, int (N,); what it raises ends the evaluation.

    Raises:
        UserError: an environment fails again and again.
    """
    num_envs = environment.num_envs
    left = np.full(num_envs, num_episodes) if first_to_finish else quotas(num_episodes, num_envs)
    episodes: list[Episode] = []
    steps = play(policy, environment, environment.reset(), max_faults)
    while len(episodes) < num_episodes:
        if on_step is not None:
            on_step(episodes, left)
        step = next(steps)
        for index in np.flatnonzero(step.result.episode_end) if step else ():
            if left[index] > 0:
                left[index] -= 1
                score, length = step.result.episode_return[index], step.result.episode_length[index]
                episodes.append(Episode(float(score), int(length)))
    return episodes[:num_episodes]


def summarise(episodes: list[Episode]) -> tuple[float, float]:
    """Return mean and standard deviation (of the sample, 0 for one episode) of the returns."""
    scores = [episode.score for episode in episodes]
    return statistics.fmean(scores), statistics.stdev(scores) if len(scores) > 1 else 0.0
