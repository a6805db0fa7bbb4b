"""Scores saved checkpoints: python eval.py -run_name=Boxing-STORM-seed_0; --help lists the options."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from agents import Policy
from compute.execution import Execution
from compute.memory_limits import memory_errors
from configuration.loading import apply_overrides, differences, find_config, load_config, load_saved_config
from configuration.schema import Config
from env_wrapper import EnvironmentFault
from evaluation.episodes import (
    choose_steps,
    evaluate,
    evaluation_environment,
    load_models,
    make_evaluation_policy,
    summarise,
)
from evaluation.options import SETTINGS, parse_options
from evaluation.scores import human_normalised
from evaluation.tables import Episode, Evaluation, append, episode_table, read_episodes, read_evaluations
from evaluation.world_model_report import measure, table, write_report
from run_files.directory import EVALUATIONS, RunDirectory, find_run
from run_files.event_file import disk_errors, encode_gif
from run_files.metrics import read_history
from run_files.seals import seal_evaluation
from utils import UserError, resolve_device, run_cli, write_atomically

TIMED_STEPS = 20  # vector steps that the estimate of the time is made from
VIDEO_FRAMES = 900  # longest recorded video, in agent steps
VIDEO_FPS = 15.0
SHAPING = ("JointTrainAgent.ModelType", "BasicSettings.ImageSize")  # with Models, what weights must fit


@dataclass(frozen=True)
class Target:
    """What is evaluated: whose weights, under which settings, and how."""

    run_name: str
    config: Config
    checkpoints: Path
    steps: list[int]
    num_envs: int
    seed: int
    as_release: bool  # first to finish, and the release's habits of seeding and counting
    settings: str  # what differs from the run's own, as in the table


def read_config(options: argparse.Namespace, run: RunDirectory | None) -> Config:
    """The run's saved config, else the one that the options name.

    Raises:
        UserError: neither is there, or they contradict each other.
    """
    if run is None or not run.config_file.is_file():
        if options.config_path is None or options.env_name is None:
            raise UserError(
                f"run {options.run_name!r} has no saved config: name one with -config_path and -env_name"
            )
        config = load_config(
            [f"BasicSettings.config_path={options.config_path}", f"BasicSettings.env_name={options.env_name}"]
        )
    else:
        config = load_saved_config(run.config_file)
        check_agrees(options, config)
    overrides = {key: getattr(options, name) for name, key in SETTINGS.items()}
    overrides["Evaluation.Greedy"] = options.greedy or None
    return apply_overrides(
        config, [f"{key}={value}" for key, value in overrides.items() if value is not None]
    )


def is_same_config(one: str, other: str) -> bool:
    """Whether two values of BasicSettings.config_path name one file that is there."""
    try:
        return find_config(one).samefile(find_config(other))
    except UserError:
        return False


def check_agrees(options: argparse.Namespace, config: Config) -> None:
    """Refuse options that say otherwise than the run's saved config.

    Another file than the one the run started from is fine as long as it describes the same model.
    """
    saved = config.BasicSettings
    if options.env_name is not None and options.env_name != saved.env_name:
        raise UserError(
            f"-env_name={options.env_name}: run {options.run_name} was trained on {saved.env_name}"
        )
    if options.config_path is None:
        return
    given = load_config([f"BasicSettings.config_path={options.config_path}"])
    if is_same_config(options.config_path, saved.config_path):  # the run's overrides were laid over it
        return
    for key, asked, trained in differences(given, config):
        if key.startswith("Models.") or key in SHAPING:
            raise UserError(
                f"-config_path={options.config_path} has {key}={asked}: run {options.run_name} was trained "
                f"with {trained}, from {saved.config_path}; leave -config_path out"
            )


def read_target(options: argparse.Namespace) -> Target:
    """Check what the options name before anything is loaded."""
    run = RunDirectory(options.run_name) if options.ckpt_dir is not None else find_run(options.run_name)
    directory = options.ckpt_dir or run.checkpoints
    if not directory.is_dir():
        raise UserError(f"no folder of checkpoints {directory}")
    config = read_config(options, run)
    default_protocol = "release" if config.BasicSettings.ReleaseQuirks else "fair"
    return Target(
        run_name=options.run_name,
        config=config,
        checkpoints=directory,
        steps=choose_steps(directory, options.checkpoints),
        num_envs=min(config.Evaluation.NumEnvs, config.Evaluation.NumEpisodes),
        seed=config.BasicSettings.Seed,
        as_release=(options.protocol or default_protocol) == "release",
        settings=foreign_settings(options, run),
    )


def foreign_settings(options: argparse.Namespace, run: RunDirectory) -> str:
    """What the options name that the run would not: other weights, and a config where it has none."""
    directory = options.ckpt_dir or run.checkpoints
    names = [] if directory.absolute() == run.checkpoints.absolute() else ["ckpt_dir"]
    names += [] if run.config_file.is_file() else ["config_path", "env_name"]
    return " ".join(f"{name}={getattr(options, name)}" for name in names)


def estimate(target: Target, seconds_a_step: float) -> str:
    """How long the evaluation will take, by the lengths of the training's episodes."""
    episodes = target.config.Evaluation.NumEpisodes
    length = None
    with contextlib.suppress(UserError):  # damaged metrics are no reason not to evaluate
        length = read_history(RunDirectory(target.run_name).metrics_file).episode_length
    about = "about" if length is not None else "at most"
    if length is None:
        length = target.config.Environment.MaxEpisodeFrames / target.config.Environment.FrameSkip
    minutes = seconds_a_step * length * episodes / target.num_envs * len(target.steps) / 60
    return (
        f"{len(target.steps)} checkpoints × {episodes} episodes of {about} {length:.0f} steps: "
        f"{about} {minutes:.1f} minutes"
    )


class Play:
    """The environments that a target's checkpoints play in, one after the other."""

    def __init__(self, target: Target) -> None:
        self.target = target
        config = target.config
        self.execution = Execution(config.BasicSettings, resolve_device(config.BasicSettings.device))
        self.environment = evaluation_environment(config, target.num_envs, target.seed, target.as_release)

    def close(self) -> None:
        """End the environments."""
        self.environment.close()

    def policy(self, step: int) -> Policy:
        """A fresh policy of one checkpoint, with fresh random streams."""
        target, config = self.target, self.target.config
        models = load_models(config, self.environment.spaces, self.execution, target.checkpoints, step)
        greedy = config.Evaluation.Greedy
        return make_evaluation_policy(config, models, target.num_envs, self.execution, target.seed, greedy)

    def seconds_a_step(self) -> float:
        """Time of a step of all environments, with the first checkpoint."""
        policy, observation = self.policy(self.target.steps[0]), self.environment.reset()
        start = time.monotonic()
        for _ in range(TIMED_STEPS):
            self.environment.start_step(policy.act(observation))
            try:
                observation = self.environment.finish_step().observation
            except EnvironmentFault as fault:
                observation = fault.observation
        return (time.monotonic() - start) / TIMED_STEPS


def score_checkpoint(play: Play, step: int, video: Path | None) -> list[Episode]:
    """Play the episodes of one checkpoint."""
    frames: list[np.ndarray] = []
    target, config = play.target, play.target.config
    total, max_faults = config.Evaluation.NumEpisodes, config.Environment.MaxFaults
    with tqdm(total=total, unit="episode", desc=f"step {step}") as bar:

        def on_step(observation: np.ndarray, finished: int) -> None:
            if video is not None and len(frames) < VIDEO_FRAMES:
                frames.append(observation[0])
            if finished > bar.n:
                bar.update(finished - bar.n)

        policy = play.policy(step)
        episodes = evaluate(policy, play.environment, total, target.as_release, on_step, max_faults)
        bar.update(total - bar.n)
    if video is not None:
        content = encode_gif(np.stack(frames), VIDEO_FPS)
        write_atomically(video, lambda file: file.write(content))
    return episodes


def score(target: Target, record_video: bool) -> None:
    """Evaluate every checkpoint of a target and write both tables."""
    folder = Path("outputs") / EVALUATIONS
    with disk_errors(folder):  # before the hours of an evaluation, not after them
        folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{target.run_name}.csv"
    read_evaluations(path), read_episodes(episode_table(path))  # refuse what is none
    with contextlib.closing(Play(target)) as play:
        print(estimate(target, play.seconds_a_step()), file=sys.stderr)
        for step in target.steps:
            video = folder / f"{target.run_name}_{step}.gif" if record_video else None
            episodes = score_checkpoint(play, step, video)
            append(path, describe(target, step, episodes), episodes)
            seal_evaluation(path, episode_table(path), target.checkpoints, step)
    print(f"wrote {path} and {episode_table(path).name}")


def describe(target: Target, step: int, episodes: list[Episode]) -> Evaluation:
    """One line of the table, which is printed as well."""
    mean, std = summarise(episodes)
    normalised = human_normalised(target.config.BasicSettings.env_name, mean)
    human = "" if normalised is None else f", human-normalised {normalised:.3f}"
    print(f"step {step}: mean return {mean:.1f} ± {std:.1f} over {len(episodes)} episodes{human}", flush=True)
    return Evaluation(
        step=step,
        mean=mean,
        std=std,
        normalised=normalised,
        episodes=len(episodes),
        seed=target.seed,
        protocol="release" if target.as_release else "fair",
        greedy=int(target.config.Evaluation.Greedy),
        num_envs=target.num_envs,
        settings=target.settings,
    )


def report_world_model(target: Target) -> None:
    """Judge the world model of a target's last checkpoint, print and write the result."""
    execution = Execution(target.config.BasicSettings, resolve_device(target.config.BasicSettings.device))
    result, video = measure(target.config, execution, target.checkpoints, target.steps[-1], target.seed)
    print(table(result))
    paths = write_report(result, video, Path("outputs") / EVALUATIONS, target.run_name)
    print(f"wrote {', '.join(map(str, paths))}")


def main(arguments: list[str]) -> None:
    """Evaluate as the command line says."""
    logging.basicConfig(format="%(message)s")
    options = parse_options(arguments)
    target = read_target(options)
    with memory_errors():
        if options.world_model:
            report_world_model(target)
        else:
            score(target, options.record_video)


if __name__ == "__main__":
    run_cli(main)
