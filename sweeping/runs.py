"""The runs of a sweep: the commands of each one, and what of it is done."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configuration.schema import Config
from evaluation.episodes import choose_steps
from evaluation.options import parse_options
from evaluation.tables import Evaluation, read_evaluations
from run_files.directory import EVALUATIONS, RunDirectory
from sweeping.progress import Progress, read_progress, tail_of
from utils import REPOSITORY, UserError

TRAIN, EVALUATE = "train", "evaluate"
LOGS = Path("outputs") / "sweep" / "logs"  # in the storage folder
LONGEST_REASON = 200


@dataclass(frozen=True)
class SweepRun:
    """One cell of the grid."""

    config: Config
    settings: tuple[str, ...]  # arguments of train.py
    directory: RunDirectory
    stages: tuple[str, ...]  # of TRAIN and EVALUATE, those that are wanted
    eval_options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the run, and of its folder in outputs/."""
        return self.directory.name

    @property
    def goal(self) -> str:
        """What a run is when nothing is left to do."""
        return "evaluated" if EVALUATE in self.stages else "trained"

    def command(self, stage: str) -> list[str]:
        """A stage's command line, without the interpreter."""
        if stage == TRAIN:
            return [str(REPOSITORY / "train.py"), *self.settings]
        return [str(REPOSITORY / "eval.py"), f"-run_name={self.name}", *self.eval_options]

    def log(self, stage: str) -> Path:
        """Where what a stage prints is kept, attempt after attempt."""
        name = self.name if stage == TRAIN else f"{self.name}_evaluation"
        return self.directory.root / LOGS / f"{name}.log"

    def next_stage(self) -> str | None:
        """The first wanted stage that is not done; None if all are."""
        done = {TRAIN: self.is_trained, EVALUATE: self.is_evaluated}
        return next((stage for stage in self.stages if not done[stage]()), None)

    def saved_step(self) -> int:
        """The step that the run would continue from."""
        return _integer(self.directory.read_status().get("finished_step"))

    def is_trained(self) -> bool:
        """Whether the run has reached the wanted step."""
        status = self.directory.read_status()
        wanted = self.config.JointTrainAgent.SampleMaxSteps
        return status.get("status") == "finished" and _integer(status.get("finished_step")) >= wanted

    def is_evaluated(self) -> bool:
        """Whether every checkpoint asked for has its row, made as asked for, of at least as many episodes."""
        options = parse_eval_options(self.eval_options)
        table = self.directory.root / "outputs" / EVALUATIONS / f"{self.name}.csv"
        try:
            steps = choose_steps(self.directory.checkpoints, options.checkpoints)
            rows = read_evaluations(table)
        except UserError:  # no such checkpoint, or no table
            return False
        return set(steps) <= {row.step for row in rows if self._answers(row, options)}

    def _answers(self, row: Evaluation, options: argparse.Namespace) -> bool:
        """Whether an evaluation is what eval.py would make under these options, or a larger one."""
        default = "release" if self.config.BasicSettings.ReleaseQuirks else "fair"
        return (
            row.protocol in ((options.protocol,) if options.protocol else (default, ""))
            and row.greedy == (options.greedy or self.config.Evaluation.Greedy)
            and row.settings == ""
            and options.seed in (None, row.seed)
            and (row.episodes or 1) >= (options.num_episodes or 1)
        )

    def obstacle(self) -> str | None:
        """Why the run cannot even be tried; None if it can."""
        if TRAIN in self.stages:
            return None
        if not self.directory.outputs.is_dir():
            return f"no such run in {self.directory.outputs.parent}"
        return None

    def progress(self) -> Progress:
        """How far training has come."""
        return read_progress(self.directory.metrics_file, self.config.JointTrainAgent.SampleMaxSteps)

    def last_words(self, stage: str) -> str:
        """The last line that a stage printed."""
        lines = [line.strip() for line in tail_of(self.log(stage)).splitlines() if line.strip()]
        text = lines[-1][:LONGEST_REASON] if lines else "it printed nothing"
        return "".join(letter if letter.isprintable() else "?" for letter in text)


def parse_eval_options(options: Iterable[str]) -> argparse.Namespace:
    """What eval.py makes of options; UserError if it would not take them, or if the grid decides them."""
    parsed = parse_options(["-run_name=any", *options])
    for name, default in (("run_name", "any"), ("ckpt_dir", None), ("env_name", None), ("config_path", None)):
        if getattr(parsed, name) != default:
            raise UserError(f"-{name}: the grid says what is evaluated; give games=, seeds= and configs=")
    return parsed


def _integer(value: Any) -> int:
    """`value` as a whole number, -1 if it is none."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return -1
