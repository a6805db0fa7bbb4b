"""Scores saved checkpoints: python eval.py -run_name=Boxing-STORM-seed_0; --help lists the options."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from config import apply_overrides, load_config, load_saved_config
from config_schema import Config
from env_wrapper import VectorEnvironment
from evaluation import (
    Episode,
    choose_steps,
    evaluate,
    evaluation_environment,
    load_models,
    make_evaluation_policy,
    summarise,
)
from event_file import encode_gif
from execution import Execution
from run_directory import EVALUATIONS, RunDirectory, find_run
from scores import human_normalised
from utils import UserError, resolve_device, run_cli, write_atomically

COLUMNS = ("step", "episode_avg_return", "episode_std_return", "human_normalised_score", "episodes", "seed")
EPISODE_COLUMNS = ("step", "episode", "return", "length", "seed")
TIMED_STEPS = 20  # vector steps that the estimate of the time is made from
VIDEO_FRAMES = 900  # longest recorded video, in agent steps
VIDEO_FPS = 15.0


@dataclass(frozen=True)
class Target:
    """What is evaluated: whose weights, under which settings, and how."""

    run_name: str
    config: Config
    checkpoints: Path
    steps: list[int]
    num_envs: int
    seed: int
    first_to_finish: bool


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose complaints are UserErrors."""

    def error(self, message: str) -> None:
        raise UserError(f"{message}; see python eval.py --help")


def make_parser() -> argparse.ArgumentParser:
    """The options, each with one or two dashes."""
    parser = OneLineParser(prog="eval.py", description=__doc__, allow_abbrev=False)

    def option(name: str, meaning: str, **settings: object) -> None:
        parser.add_argument(f"-{name}", f"--{name}", help=meaning, **settings)

    option("run_name", "name of the run, a folder of outputs/", required=True)
    option("config_path", "YAML file, for checkpoints without a saved run")
    option("env_name", "Gymnasium id, for checkpoints without a saved run")
    option("ckpt_dir", "folder of checkpoints (default: those of the run)", type=Path)
    option("checkpoints", "all (default), last, or a step", default="all")
    option("num_episodes", "episodes per checkpoint (default: the run's Evaluation.NumEpisodes)", type=int)
    option("num_envs", "parallel environments (default: the run's Evaluation.NumEnvs)", type=int)
    option("seed", "seed of the evaluation (default: the run's)", type=int)
    option("greedy", "take the most likely action", action="store_true")
    option("protocol", "fair (default): fixed quota per environment; release: first to finish", default="fair")
    option("record_video", "save one environment's play as a GIF", action="store_true")
    option("world_model", "measure the world model on held-out episodes instead", action="store_true")
    option("device", "device (default: the run's BasicSettings.device)")
    return parser


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
    overrides = {
        "Evaluation.NumEpisodes": options.num_episodes,
        "Evaluation.NumEnvs": options.num_envs,
        "Evaluation.Greedy": options.greedy or None,
        "BasicSettings.device": options.device,
    }
    return apply_overrides(config, [f"{key}={value}" for key, value in overrides.items() if value is not None])


def check_agrees(options: argparse.Namespace, config: Config) -> None:
    """Refuse options that say otherwise than the run's saved config."""
    saved = config.BasicSettings
    if options.env_name is not None and options.env_name != saved.env_name:
        raise UserError(f"-env_name={options.env_name}: run {options.run_name} was trained on {saved.env_name}")
    if options.config_path is None:
        return
    given = load_config([f"BasicSettings.config_path={options.config_path}"])
    for section in ("ModelType",):
        asked, trained = getattr(given.JointTrainAgent, section), getattr(config.JointTrainAgent, section)
        if asked != trained:
            raise UserError(f"-config_path={options.config_path} is {asked}: run {options.run_name} is {trained}")


def read_target(options: argparse.Namespace) -> Target:
    """Check all options before anything is loaded."""
    if options.protocol not in ("fair", "release"):
        raise UserError(f"-protocol {options.protocol!r}: must be fair or release")
    run = RunDirectory(options.run_name) if options.ckpt_dir is not None else find_run(options.run_name)
    directory = options.ckpt_dir or run.checkpoints
    if not directory.is_dir():
        raise UserError(f"no folder of checkpoints {directory}")
    config = read_config(options, run)
    return Target(
        run_name=options.run_name,
        config=config,
        checkpoints=directory,
        steps=choose_steps(directory, options.checkpoints),
        num_envs=min(config.Evaluation.NumEnvs, config.Evaluation.NumEpisodes),
        seed=config.BasicSettings.Seed if options.seed is None else options.seed,
        first_to_finish=options.protocol == "release",
    )


def mean_episode_length(metrics_file: Path) -> float | None:
    """Mean length in steps of the episodes seen in training; None if there are none."""
    if not metrics_file.is_file():
        return None
    with metrics_file.open() as lines:
        records = [json.loads(line) for line in lines if "_episode_steps" in line]
    lengths = [value for record in records for tag, value in record.items() if tag.endswith("_episode_steps")]
    return float(np.mean(lengths)) if lengths else None


def estimate(target: Target, environment: VectorEnvironment, act: Callable[[np.ndarray], np.ndarray]) -> str:
    """How long the evaluation will take, from some steps of it and the training's episodes."""
    observation = environment.reset()
    start = time.monotonic()
    for _ in range(TIMED_STEPS):
        environment.start_step(act(observation))
        observation = environment.finish_step().observation
    seconds_a_step = (time.monotonic() - start) / TIMED_STEPS
    episodes = target.config.Evaluation.NumEpisodes
    length = mean_episode_length(RunDirectory(target.run_name).metrics_file)
    known = length is not None
    if not known:
        length = target.config.Environment.MaxEpisodeFrames / target.config.Environment.FrameSkip
    minutes = seconds_a_step * length * episodes / target.num_envs * len(target.steps) / 60
    return (
        f"{len(target.steps)} checkpoints × {episodes} episodes of {'about' if known else 'at most'} "
        f"{length:.0f} steps: {'about' if known else 'at most'} {minutes:.1f} minutes"
    )


def score_checkpoint(target: Target, execution: Execution, step: int, video: Path | None) -> list[Episode]:
    """Play the episodes of one checkpoint, in fresh environments and with fresh random streams."""
    environment = evaluation_environment(target.config, target.num_envs, target.seed)
    models = load_models(target.config, environment.num_actions, execution, target.checkpoints, step)
    frames: list[np.ndarray] = []
    total = target.config.Evaluation.NumEpisodes
    greedy = target.config.Evaluation.Greedy
    try:
        policy = make_evaluation_policy(target.config, models, target.num_envs, execution, target.seed, greedy)
        with tqdm(total=total, unit="episode", desc=f"step {step}") as bar:

            def on_step(observation: np.ndarray, finished: int) -> None:
                if video is not None and len(frames) < VIDEO_FRAMES:
                    frames.append(observation[0])
                bar.update(finished - bar.n)

            episodes = evaluate(policy, environment, total, target.first_to_finish, on_step)
            bar.update(total - bar.n)
    finally:
        environment.close()
    if video is not None:
        content = encode_gif(np.stack(frames), VIDEO_FPS)
        write_atomically(video, lambda file: file.write(content))
    return episodes


def write_csv(path: Path, columns: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    """Put rows into a table, in place of those of the same steps; whole or not at all."""
    kept: list[tuple[object, ...]] = []
    if path.is_file():
        with path.open(newline="") as file:
            header, *lines = [*csv.reader(file)] or [[]]
        new_steps = {str(row[0]) for row in rows}
        if tuple(header) == columns:
            kept = [tuple(line) for line in lines if line and line[0] not in new_steps]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(sorted([*kept, *rows], key=lambda row: int(row[0])))
    write_atomically(path, lambda file: file.write(text.getvalue().encode()))


def score(target: Target, record_video: bool) -> None:
    """Evaluate every checkpoint of a target and write both tables."""
    execution = Execution(target.config.BasicSettings, resolve_device(target.config.BasicSettings.device))
    folder = Path("outputs") / EVALUATIONS
    env_name = target.config.BasicSettings.env_name
    rows: list[tuple[object, ...]] = []
    episode_rows: list[tuple[object, ...]] = []
    announce_time(target, execution)
    for step in target.steps:
        video = folder / f"{target.run_name}_{step}.gif" if record_video else None
        episodes = score_checkpoint(target, execution, step, video)
        mean, std = summarise(episodes)
        normalised = human_normalised(env_name, mean)
        shown = "" if normalised is None else f"{normalised:.6g}"
        rows.append((step, f"{mean:.6g}", f"{std:.6g}", shown, len(episodes), target.seed))
        episode_rows += [
            (step, index, episode.score, episode.length, target.seed) for index, episode in enumerate(episodes)
        ]
        human = "" if normalised is None else f", human-normalised {normalised:.3f}"
        print(f"step {step}: mean return {mean:.1f} ± {std:.1f} over {len(episodes)} episodes{human}")
        write_csv(folder / f"{target.run_name}.csv", COLUMNS, rows)
        write_csv(folder / f"{target.run_name}_episodes.csv", EPISODE_COLUMNS, episode_rows)
    print(f"wrote {folder / target.run_name}.csv and {target.run_name}_episodes.csv")


def announce_time(target: Target, execution: Execution) -> None:
    """Print the estimate, made with the first checkpoint."""
    environment = evaluation_environment(target.config, target.num_envs, target.seed)
    models = load_models(
        target.config, environment.num_actions, execution, target.checkpoints, target.steps[0]
    )
    policy = make_evaluation_policy(target.config, models, target.num_envs, execution, target.seed, False)
    print(estimate(target, environment, policy.act), file=sys.stderr)
    environment.close()


def main(arguments: list[str]) -> None:
    """Evaluate as the command line says."""
    options = make_parser().parse_args(arguments)
    target = read_target(options)
    score(target, options.record_video)


if __name__ == "__main__":
    run_cli(main)
