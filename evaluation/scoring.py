"""Scores checkpoints: plays their episodes and writes the tables, and videos if asked."""

from __future__ import annotations

import contextlib

import numpy as np
from tqdm import tqdm

from compute.execution import Execution
from env_wrapper import VectorEnvironment
from evaluation.episodes import evaluate, evaluation_environment, summarise
from evaluation.playing.beside import DreamingPolicy
from evaluation.policies import EvaluationPolicy, load_models
from evaluation.scores import human_normalised
from evaluation.tables import Episode, Evaluation, append, episode_table, read_episodes, read_evaluations
from evaluation.target import Target
from evaluation.video import Video, side_by_side
from run_files.manifest import rewriting
from utils import UserError, disk_errors, resolve_device

FRAMES_A_SECOND = 60.0  # of Atari's emulator, so that its videos run at the speed of play; others are as fast


def score(target: Target, record_video: bool, record_dream: bool) -> None:
    """Evaluate every checkpoint of a target; each is written, and printed, when it is done.

    Raises:
        UserError: something cannot be read, played or written; or no pictures can be dreamt.
    """
    with disk_errors(target.run.evaluations):  # before the hours of an evaluation, not after them
        target.run.evaluations.mkdir(parents=True, exist_ok=True)
    path = target.run.table
    read_evaluations(path), read_episodes(episode_table(path))  # refuse what cannot be added to
    config = target.config
    execution = Execution(config.BasicSettings, resolve_device(config.BasicSettings.device))
    environment = evaluation_environment(config, target.num_envs, target.seed, target.as_release)
    if record_dream and environment.spaces.observation.kind != "image":
        environment.close()
        raise UserError(f"-record_dream: {config.BasicSettings.env_name} is seen as numbers, not as pictures")
    total = len(target.steps) * config.Evaluation.NumEpisodes
    with contextlib.closing(environment), tqdm(total=total, unit="episode") as bar:
        for step in target.steps:
            video = (
                Video(FRAMES_A_SECOND / config.Environment.FrameSkip)
                if record_video or record_dream
                else None
            )
            episodes = play_checkpoint(target, step, environment, execution, bar, video, record_dream)
            row = make_row(target, step, episodes)
            with rewriting(target.run.outputs, target.run.evaluated):
                append(path, row, episodes)
            bar.write(describe(row))
            if video is not None:
                bar.write(f"wrote {video.save(target.run.shown / row.file_name)}")
    print(f"wrote {path} and {episode_table(path).name}")


def play_checkpoint(
    target: Target,
    step: int,
    environment: VectorEnvironment,
    execution: Execution,
    bar: tqdm,
    video: Video | None,
    with_dream: bool,
) -> list[Episode]:
    """Return the episodes of one checkpoint; those of the first environment go into the video."""
    config, done = target.config, bar.n
    models = load_models(config, environment.spaces, execution, target.checkpoints, step)
    greedy, total = config.Evaluation.Greedy, config.Evaluation.NumEpisodes
    make_policy = DreamingPolicy if with_dream else EvaluationPolicy
    policy = make_policy(config, models, target.num_envs, execution, target.seed, greedy)
    bar.set_description(f"step {step}")

    def on_step(episodes: list[Episode], left: np.ndarray) -> None:
        bar.update(done + len(episodes) - bar.n)
        if video is not None and left[0] > 0:
            game = environment.render()
            video.add(side_by_side([game, policy.imagined]) if with_dream else game)

    max_faults = config.Environment.MaxFaults
    episodes = evaluate(policy, environment, total, target.as_release, max_faults, on_step)
    bar.update(done + total - bar.n)
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
        protocol=target.protocol,
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
