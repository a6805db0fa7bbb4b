"""Scores checkpoints: plays their episodes and writes the tables, and videos if asked."""

from __future__ import annotations

import contextlib
import itertools
import sys
import time

import numpy as np
from tqdm import tqdm

from compute.execution import Execution
from env_wrapper import VectorEnvironment
from evaluation.episodes import evaluate, evaluation_environment, play, summarise
from evaluation.policies import EvaluationPolicy, load_models
from evaluation.scores import human_normalised
from evaluation.tables import Episode, Evaluation, append, episode_table, read_episodes, read_evaluations
from evaluation.target import Target
from evaluation.video import Video
from run_files.manifest import rewriting
from run_files.metrics import read_history
from utils import UserError, disk_errors, resolve_device

TIMED_STEPS = 20  # vector steps that the estimate of the time is made from
FRAMES_A_SECOND = 60.0  # of the emulator: videos run at the speed of play


def score(target: Target, record_video: bool) -> None:
    """Evaluate every checkpoint of a target; each is written, and printed, when it is done."""
    with disk_errors(target.results):  # before the hours of an evaluation, not after them
        target.results.mkdir(parents=True, exist_ok=True)
    path = target.run.table
    read_evaluations(path), read_episodes(episode_table(path))  # refuse what cannot be added to
    settings = target.config.BasicSettings
    execution = Execution(settings, resolve_device(settings.device))
    environment = evaluation_environment(target.config, target.num_envs, target.seed, target.as_release)
    with contextlib.closing(environment):
        print(estimate(target, seconds_a_step(target, environment, execution)), file=sys.stderr)
        for step in target.steps:
            video = Video(FRAMES_A_SECOND / target.config.Environment.FrameSkip) if record_video else None
            episodes = score_checkpoint(target, step, environment, execution, video)
            row = make_row(target, step, episodes)
            with rewriting(target.run.outputs, target.run.evaluated):
                append(path, row, episodes)
            print(describe(row), flush=True)
            if video is not None:
                print(f"wrote {video.save(target.results / f'{target.run.name}_{step}')}")
    print(f"wrote {path} and {episode_table(path).name}")


def load(target: Target, step: int, environment: VectorEnvironment, execution: Execution) -> EvaluationPolicy:
    """Return a fresh policy of one checkpoint, with fresh random streams."""
    config = target.config
    models = load_models(config, environment.spaces, execution, target.checkpoints, step)
    return EvaluationPolicy(config, models, target.num_envs, execution, target.seed, config.Evaluation.Greedy)


def score_checkpoint(
    target: Target, step: int, environment: VectorEnvironment, execution: Execution, video: Video | None
) -> list[Episode]:
    """Play the episodes of one checkpoint; those of the first environment go into the video."""
    total, max_faults = target.config.Evaluation.NumEpisodes, target.config.Environment.MaxFaults
    policy = load(target, step, environment, execution)
    with tqdm(total=total, unit="episode", desc=f"step {step}") as bar:

        def on_step(episodes: list[Episode], left: np.ndarray) -> None:
            bar.update(len(episodes) - bar.n)
            if video is not None and left[0] > 0:
                video.add(environment.render())

        episodes = evaluate(policy, environment, total, target.as_release, max_faults, on_step)
        bar.update(total - bar.n)
    return episodes


def make_row(target: Target, step: int, episodes: list[Episode]) -> Evaluation:
    """Return the row of the evaluation table."""
    mean, std = summarise(episodes)
    return Evaluation(
        step=step,
        mean=mean,
        std=std,
        normalised=human_normalised(target.config.BasicSettings.env_name, mean),
        episodes=len(episodes),
        seed=target.seed,
        protocol="release" if target.as_release else "fair",
        greedy=int(target.config.Evaluation.Greedy),
        num_envs=target.num_envs,
        settings=target.settings,
    )


def describe(row: Evaluation) -> str:
    """Return a row of the table as a line of text."""
    human = "" if row.normalised is None else f", human-normalised {row.normalised:.3f}"
    how = f", {row.how}" if row.how else ""
    return (
        f"step {row.step}: mean return {row.mean:.1f}, standard deviation {row.std:.1f} "
        f"over {row.episodes} episodes{human}{how}"
    )


def seconds_a_step(target: Target, environment: VectorEnvironment, execution: Execution) -> float:
    """Return the time of a step of all environments, with the first checkpoint."""
    policy, observation = load(target, target.steps[0], environment, execution), environment.reset()
    start = time.monotonic()
    steps = play(policy, environment, observation, target.config.Environment.MaxFaults)
    for _ in itertools.islice(steps, TIMED_STEPS):
        pass
    return (time.monotonic() - start) / TIMED_STEPS


def estimate(target: Target, seconds_a_step: float) -> str:
    """Return how long the evaluation will take, by the lengths of the training's episodes."""
    episodes, environment = target.config.Evaluation.NumEpisodes, target.config.Environment
    length = None
    with contextlib.suppress(UserError):  # damaged metrics are no reason not to evaluate
        length = read_history(target.run.metrics_file).episode_length
    about = "about" if length is not None else "at most"
    length = length or environment.MaxEpisodeFrames / environment.FrameSkip
    minutes = seconds_a_step * length * episodes / target.num_envs * len(target.steps) / 60
    return (
        f"{len(target.steps)} checkpoints × {episodes} episodes of {about} {length:.0f} steps: "
        f"{about} {minutes:.1f} minutes"
    )
