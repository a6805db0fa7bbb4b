"""What eval.py evaluates: whose weights, in which environment, under which settings."""

from __future__ import annotations

import argparse
import contextlib
import re
from dataclasses import dataclass
from pathlib import Path

from configuration.loading import apply_overrides, differences, find_config, load_config, load_saved_config
from configuration.schema import Config
from evaluation.options import BLINDLY, SETTINGS
from evaluation.policies import STEP, choose_step
from run_files.directory import RunDirectory, as_outputs, find_run
from run_files.weights import list_checkpoints
from utils import UserError, as_file_name

SHAPING = ("Models.", "JointTrainAgent.ModelType", "BasicSettings.ImageSize")  # what weights must fit
JUDGED = ("Evaluation.", "VideoPrediction.")
SCORED = ("Environment.", BLINDLY)
UNSCORED = ("Environment.StepTimeout", "Environment.MaxFaults")  # all others may change a score


@dataclass(frozen=True)
class Target:
    """The checkpoints of one run, and how they are evaluated."""

    run: RunDirectory
    config: Config
    checkpoints: Path
    steps: list[int]
    as_release: bool  # first to finish, and the release's habits of seeding and counting
    settings: str  # of environment and acting that differ from the run's own, as in the evaluation table
    judged: str  # keys of Evaluation and VideoPrediction that do

    @property
    def num_envs(self) -> int:
        """Parallel environments, no more than there are episodes."""
        return min(self.config.Evaluation.NumEnvs, self.config.Evaluation.NumEpisodes)

    @property
    def protocol(self) -> str:
        """The protocol's name in the evaluation table."""
        return "release" if self.as_release else "fair"

    @property
    def seed(self) -> int:
        """The evaluation's seed."""
        return self.config.BasicSettings.Seed

    def file_name(self, what: str, *details: str) -> str:
        """Return the name, without an ending, of what is said of the last checkpoint under these settings."""
        name = f"{what}-{self.steps[-1]}-seed_{self.seed}"
        return as_file_name(" ".join(filter(None, (name, self.settings, self.judged, *details))))


def read_target(options: argparse.Namespace) -> Target:
    """Check what the options name before anything is loaded; raise UserError for what cannot be."""
    path = as_outputs(options.run_name)
    where = (path.name, path.parent.parent) if path.parent.name == "outputs" else (str(path),)
    run = RunDirectory(*where) if options.ckpt_dir is not None else find_run(*where)
    checkpoints = options.ckpt_dir or run.checkpoints
    if not checkpoints.is_dir():
        raise UserError(f"no folder of checkpoints {checkpoints}")
    own = read_config(options, run)
    config = override(own, options)
    changed = {key: new for key, _, new in differences(own, config) if key not in UNSCORED}
    scored = [f"{key}={new}" for key, new in changed.items() if key.startswith(SCORED)]
    judged = [f"{key.split('.')[1]}={new}" for key, new in changed.items() if key.startswith(JUDGED)]
    foreign = [] if checkpoints.absolute() == run.checkpoints.absolute() else ["ckpt_dir"]
    foreign += [] if run.config_file.is_file() else ["config_path", "env_name"]
    return Target(
        run=run,
        config=config,
        checkpoints=checkpoints,
        steps=choose_steps(checkpoints, options.checkpoints),
        as_release=options.protocol == "release"
        or (options.protocol is None and config.BasicSettings.ReleaseQuirks),
        settings=" ".join([f"{name}={getattr(options, name)}" for name in foreign] + scored),
        judged=" ".join(judged),
    )


def choose_steps(directory: Path, which: str) -> list[int]:
    """Return the checkpoint steps that -checkpoints asks for; raise UserError if there are none such."""
    if which not in ("all", "last") and not re.fullmatch(STEP, which):
        raise UserError(f"-checkpoints {which[:80]!r}: must be all, last or a step such as 100000")
    every = list_checkpoints(directory) if which == "all" else []
    return every or [choose_step(directory, "last" if which == "all" else which)]


def read_config(options: argparse.Namespace, run: RunDirectory) -> Config:
    """Return the run's saved config, else the one that the options name; raise UserError if they disagree."""
    if run.config_file.is_file():
        config = load_saved_config(run.config_file)
        check_agreement(options, config)
        return config
    if options.config_path is None or options.env_name is None:
        raise UserError(
            f"run {options.run_name!r} has no saved config: name one with -config_path and -env_name"
        )
    return load_config(
        [f"BasicSettings.{key}={getattr(options, key)}" for key in ("config_path", "env_name")]
    )


def override(config: Config, options: argparse.Namespace) -> Config:
    """Return a config with what the options say laid over it."""
    values = {key: getattr(options, name) for name, key in SETTINGS.items()}
    values["Evaluation.Greedy"] = options.greedy or None
    given = [f"{key}={value}" for key, value in values.items() if value is not None]
    return apply_overrides(config, given + options.overrides)


def check_agreement(options: argparse.Namespace, config: Config) -> None:
    """Raise UserError if options say otherwise than the run's saved config.

    Another file than the one the run started from is fine as long as it describes the same model.
    """
    saved = config.BasicSettings
    if options.env_name not in (None, saved.env_name):
        raise UserError(
            f"-env_name={options.env_name}: run {options.run_name} was trained on {saved.env_name}"
        )
    if options.config_path is None:
        return
    with contextlib.suppress(UserError):
        if find_config(options.config_path).samefile(find_config(saved.config_path)):
            return  # the run's overrides were laid over it
    given = load_config([f"BasicSettings.config_path={options.config_path}"])
    for key, asked, trained in differences(given, config):
        if key.startswith(SHAPING):
            raise UserError(
                f"-config_path={options.config_path} has {key}={asked}: run {options.run_name} was trained "
                f"with {trained}, from {saved.config_path}; leave -config_path out"
            )
