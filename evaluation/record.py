"""Records episodes as clips of video: python -m evaluation.record -random=Diagnostic/Digits-v0 -out=clips

Each episode becomes one .npz of `video`, uint8 (T, S, S, 3), and `actions`, each taken on its frame;
`python train.py Task=VideoPrediction BasicSettings.trajectory_path=clips` learns from them.
"""

from __future__ import annotations

import configuration.packages  # noqa: F401  (first: it says which packages are missing)

# isort: split
import argparse
import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from agents import Policy
from configuration.loading import apply_overrides, load_config
from configuration.schema import Config
from configuration.spaces import ObservationSpec
from env_wrapper import VectorEnvironment
from environments.single import environment_id
from evaluation.episodes import evaluation_environment, play
from evaluation.options import named_as_options
from evaluation.policies import RandomPlay, check_spaces, load_policy
from utils import OneLineParser, UserError, run_cli, write_atomically

Clip = tuple[np.ndarray, np.ndarray]  # frames, uint8 (T, S, S, 3), and actions (T, ...)


def parse_options(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; raise UserError for what cannot be."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = OneLineParser(
        prog="-m evaluation.record", description=__doc__, formatter_class=layout, allow_abbrev=False
    )
    option = parser.option
    option("run_name", "the agent that plays: a run, its folder, or an agent in assets/agents")
    option("random", "play at random, in this game or Gymnasium id", type=environment_id, metavar="ENV")
    option("out", "folder of the clips, empty or not there yet", type=Path, required=True)
    option(
        "steps", "frames in all (default 20000); the last episode ends with them", type=int, default=20_000
    )
    option("seed", "of the environment and of random play (default 0)", type=int, default=0)
    option("checkpoint", "of the run: last (default), or a step", metavar="STEP")
    option("device", "of the run's networks: auto (default), cuda, cuda:N, mps or cpu")
    option("without_actions", "leave the actions out", action="store_true")
    meaning = "settings of Environment, or with -random any, as BasicSettings.ImageSize=32"
    parser.add_argument("overrides", nargs="*", metavar="Section.Key=value", help=meaning)
    options = parser.parse_args(arguments)
    if (options.run_name is None) == (options.random is None):
        raise UserError("one of -run_name=NAME and -random=ENV; see python -m evaluation.record --help")
    for name in ("checkpoint", "device"):
        if options.random is not None and getattr(options, name) is not None:
            raise UserError(f"-{name}: does not go with -random")
    for name, least in (("steps", 1), ("seed", 0)):
        if getattr(options, name) < least:
            raise UserError(f"-{name}={getattr(options, name)}: must be {least} or more")
    for text in options.overrides:
        if options.random is None and not text.startswith("Environment."):
            raise UserError(f"{text!r}: must be a setting of Environment")
    return options


def open_play(options: argparse.Namespace) -> tuple[Policy | RandomPlay, VectorEnvironment, int]:
    """Return who plays, one environment, and the environment faults in a row that are too many."""
    if options.random is not None:
        config = load_config([f"BasicSettings.env_name={options.random}", *options.overrides])
    else:
        policy = load_policy(options.run_name, options.checkpoint or "last", device=options.device or "auto")
        config = apply_overrides(policy.config, options.overrides)
    environment = evaluation_environment(config, 1, options.seed, purpose="recorded clips")
    try:
        check_picture(config, environment.spaces.observation)
        if options.random is not None:
            policy = RandomPlay(1, environment.spaces.action, options.seed)
        else:
            check_spaces(options.run_name, policy.world_model.spaces, environment.spaces)
    except UserError:
        environment.close()
        raise
    return policy, environment, config.Environment.MaxFaults


def check_picture(config: Config, seen: ObservationSpec) -> None:
    """Raise UserError if an environment is not seen in colour."""
    if seen.kind != "image":
        raise UserError(f"{config.BasicSettings.env_name} is seen as {seen.kind} {seen.shape}, not in colour")


def clips_of_play(
    policy: Policy | RandomPlay, environment: VectorEnvironment, steps: int, max_faults: int
) -> Iterator[Clip]:
    """Play so many steps and yield their episodes; one in which the environment fails ends there."""
    frames, actions, left = [], [], steps
    for step in play(policy, environment, environment.reset(), max_faults):
        if step is not None:
            frames.append(step.observation[0].copy())
            actions.append(step.action[0])
            left -= 1
        if frames and (step is None or step.result.episode_end[0] or left == 0):
            yield np.stack(frames), np.stack(actions)
            frames, actions = [], []
        if left == 0:
            return


def record(options: argparse.Namespace) -> int:
    """Write the clips that the options ask for; return how many."""
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise UserError(f"-out={options.out}: is there already; choose another folder")
    policy, environment, max_faults = open_play(options)
    count = 0
    with contextlib.closing(environment), tqdm(total=options.steps, unit="frame") as bar:
        for video, actions in clips_of_play(policy, environment, options.steps, max_faults):
            arrays = {"video": video} | ({} if options.without_actions else {"actions": actions})
            write_atomically(
                options.out / f"{count:05}.npz",
                lambda file, arrays=arrays: np.savez_compressed(file, **arrays),
            )
            count += 1
            bar.update(len(video))
    return count


def main(arguments: list[str]) -> None:
    """Record as the command line says."""
    logging.basicConfig(format="%(message)s")
    options = parse_options(arguments)
    with named_as_options():
        print(f"wrote {record(options)} clips to {options.out}")


if __name__ == "__main__":
    run_cli(main)
