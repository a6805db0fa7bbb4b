"""The runs of a sweep's grid: the commands of each one, and what of it is done."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from configuration.loading import apply_overrides, load_config
from configuration.schema import Config
from environments.single import environment_id, find_spec
from evaluation.options import parse_options
from evaluation.tables import Evaluation, read_evaluations
from evaluation.target import read_target
from run_files.directory import RunDirectory
from run_files.manifest import read_json
from sweeping.local import Job
from sweeping.options import EVALUATE, ONLY, Options
from training.resume import check_resumable
from utils import REPOSITORY, UserError

TRAIN = "train"
LOGS = Path("outputs") / "sweep" / "logs"  # in the storage folder
TAIL_BYTES = 4_096
LONGEST_LINE = 200
FROM_GRID = {"run_name", "env_name", "config_path", "ckpt_dir"}  # options of eval.py
BESIDE_SCORES = ("record_video", "record_dream", "world_model", "video")  # they ask for more than scores


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

    def job(self, stage: str) -> Job:
        """Return the command of a stage."""
        if stage == TRAIN:
            command = [str(REPOSITORY / "train.py"), *self.settings]
        else:
            command = [str(REPOSITORY / "eval.py"), f"-run_name={self.name}", *self.eval_options]
        lock = str(self.directory.lock_file) if stage == TRAIN else ""
        return Job(command, str(self.directory.root), str(self.log(stage)), lock)

    def log(self, stage: str) -> Path:
        """Return where what a stage prints is kept, attempt after attempt."""
        name = self.name if stage == TRAIN else f"{self.name}_evaluation"
        return self.directory.root / LOGS / f"{name}.log"

    def saved_step(self) -> int:
        """Return the step that the run would continue from, -1 if there is none."""
        step = read_json(self.directory.status_file).get("finished_step")
        return step if isinstance(step, int) else -1

    def is_done(self, stage: str) -> bool:
        """Return whether nothing of a stage is left to do."""
        if stage == EVALUATE:
            return self.is_evaluated()
        if read_json(self.directory.status_file).get("status") != "finished":
            return False
        try:
            check_resumable(self.config, self.directory)
        except UserError:  # it had other settings: train.py says which
            return False
        return self.saved_step() >= self.config.JointTrainAgent.SampleMaxSteps

    def evaluations(self) -> list[Evaluation]:
        """Return what its evaluations say. Raise UserError if they cannot be read."""
        return read_evaluations(self.directory.table)

    def is_evaluated(self) -> bool:
        """Return whether every checkpoint asked for has its row, made as eval.py would, of enough episodes.

        Films and reports are made whenever they are asked for.
        """
        options = parse_eval_options(self.eval_options, str(self.directory.outputs))
        if any(getattr(options, name) for name in BESIDE_SCORES):
            return False
        try:
            target, rows = read_target(options), self.evaluations()
        except UserError:  # no such checkpoint, or no table
            return False
        by_default = "" if options.protocol else target.protocol  # what a table that names none was made by
        done = {
            row.step
            for row in rows
            if (row.protocol or by_default) == target.protocol
            and (row.greedy or 0) == target.config.Evaluation.Greedy
            and row.settings == target.settings
            and options.seed in (None, row.seed)
            and (row.episodes or 1) >= target.config.Evaluation.NumEpisodes
        }
        return set(target.steps) <= done

    def last_line(self, stage: str) -> str:
        """Return the last line that a stage printed."""
        path = self.log(stage)
        text = path.read_bytes()[-TAIL_BYTES:].decode(errors="replace") if path.is_file() else ""
        lines = [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()] or [""]
        return "".join(letter if letter.isprintable() else "?" for letter in lines[-1][:LONGEST_LINE])


def parse_eval_options(options: Sequence[str], run: str = "any") -> argparse.Namespace:
    """Return what eval.py makes of a run's name or folder and of options.

    Raise UserError if it would not take them, or if they say what the grid decides.
    """
    for name in {option.lstrip("-").partition("=")[0] for option in options} & FROM_GRID:
        raise UserError(f"-{name}: the grid says what is evaluated; give games=, seeds= and configs=")
    return parse_options([f"-run_name={run}", *options])


def plan_runs(options: Options) -> list[SweepRun]:
    """Return the runs of a grid, or the one that `task=` names, all of their settings checked.

    Raise UserError for an unknown game, config or setting, and where two runs would be one.
    """
    others = tuple(options.others)
    overrides, eval_options = ((), others) if options.evaluate_only else (others, ())
    parse_eval_options(eval_options)
    stages = (EVALUATE,) if options.evaluate_only else (TRAIN, EVALUATE)[: 1 + options.evaluate]
    bases: dict[str, Config] = {}
    runs: dict[str, SweepRun] = {}
    for game, seed, config in cells(options):
        find_spec(environment_id(game))
        own = (f"BasicSettings.env_name={environment_id(game)}", f"BasicSettings.Seed={seed}")
        if config not in bases:
            bases[config] = load_config([f"BasicSettings.config_path={config}", *overrides])
        path = bases[config].BasicSettings.config_path
        settings = (*own, f"BasicSettings.config_path={path}", "BasicSettings.n=null", *overrides)
        resolved = apply_overrides(bases[config], list(settings))
        directory = RunDirectory(resolved.BasicSettings.n, Path(options.storage))
        judged = stages if resolved.Task != "VideoPrediction" else (TRAIN,)  # of clips nothing has a score
        run = SweepRun(resolved, settings, directory, judged, eval_options)
        if run.name in runs:
            raise UserError(f"two runs of the grid would be named {run.name}")
        if resolved.BasicSettings.Restart and options.task is None:
            raise UserError("BasicSettings.Restart: a retried run would start over; restart it with train.py")
        runs[run.name] = run
    return list(runs.values())


def cells(options: Options) -> list[tuple[str, str, str]]:
    """Return the cells of the grid, or the one that `task=` names; of a single run ONLY does."""
    grid, task = options.grid(), options.task
    if task is None or (task == ONLY and len(grid) == 1):
        return grid
    if not re.fullmatch("[0-9]{1,9}", task) or int(task) >= len(grid):
        last = len(grid) - 1
        raise UserError(f"task={task}: must be from 0 to {last}, so use sbatch --array=0-{last}")
    return [grid[int(task)]]
