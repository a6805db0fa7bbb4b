"""Finding the runs of a folder, and what each of them says about itself."""

from __future__ import annotations

import fnmatch
import glob
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configuration.loading import differences, load_saved_config
from configuration.schema import Config, schema
from evaluation.scores import game_of
from evaluation.tables import Evaluation, best_rows, read_evaluations
from reporting.files import read_json, read_status
from reporting.published import BENCHMARK_STEP
from run_files.metrics import History, read_history
from utils import UserError, nearest

ARCHIVED = ".archived-"  # in the name of a run that was started over; selected only by naming it so
EVALUATIONS = "eval_result"  # folder of the evaluation CSVs under outputs/
ENTRY_FILES = {"evaluation": "evaluation.csv", "episodes": "episodes.csv"}  # in a recorded entry
# What runs differ in without being another method.
IDENTITY = {"BasicSettings.Seed", "BasicSettings.env_name", "JointTrainAgent.ModelType"}
RUN_NAME = re.compile(r"(?P<game>[^-]+)-(?P<label>.+?)-seed_(?P<seed>\d+)(?P<rest>.*)")


@dataclass(frozen=True)
class Run:
    name: str
    game: str  # "Boxing" of ALE/Boxing-v5
    label: str  # what is compared: the middle of <Game>-<label>-seed_<seed>
    seed: int
    config: Config | None  # None where only an evaluation is left
    evaluations: tuple[Evaluation, ...]  # those that count, one a step, in order of steps
    history: History
    info: dict[str, Any]  # run.json, {} if there is none
    folder: Path
    events: Path | None  # folder of TensorBoard event files

    @property
    def scored(self) -> Evaluation | None:
        """The evaluation that counts: of step 100,000 if there is one, else the last; None if none."""
        at_benchmark = [each for each in self.evaluations if each.step == BENCHMARK_STEP]
        return (at_benchmark or list(self.evaluations[-1:]) or [None])[0]

    @property
    def deviations(self) -> list[str]:
        """The settings, as Key=value, that shape the result and differ from the papers' (the defaults)."""
        if self.config is None:
            return []
        changed = differences(Config(), self.config)
        return [f"{key}={value}" for key, _, value in changed if _shapes_the_result(key, self.config)]

    @property
    def benchmarked(self) -> bool:
        """Whether the score is one of step 100,000."""
        return self.scored is not None and self.scored.step == BENCHMARK_STEP


def _shapes_the_result(key: str, config: Config) -> bool:
    section, _, name = key.rpartition(".")
    if schema()[key].may_change or key in IDENTITY:
        return False
    if name.startswith(("Demonstration", "ImagineDemonstration")):
        return config.JointTrainAgent.UseDemonstration
    return config.JointTrainAgent.ModelType != "STORM" or not section.startswith("Models.MaskGit")


@dataclass(frozen=True)
class RunFiles:
    """Where the files of one run lie; any of them may be missing."""

    name: str
    folder: Path  # holds config.yaml, metrics.jsonl and run.json
    evaluation: Path
    episodes: Path
    events: Path | None

    @staticmethod
    def of_output(name: str, outputs: Path) -> RunFiles:
        """The files of run `name` under `outputs`; TensorBoard's lie beside it, in runs/."""
        table = outputs / EVALUATIONS
        events = outputs.absolute().parent / "runs" / name
        return RunFiles(name, outputs / name, table / f"{name}.csv", table / f"{name}_episodes.csv", events)

    @staticmethod
    def of_entry(folder: Path) -> RunFiles:
        """The files of an entry of results/."""
        name = str(read_json(folder / "manifest.json").get("run", folder.name))
        paths = {kind: folder / file for kind, file in ENTRY_FILES.items()}
        return RunFiles(name, folder, paths["evaluation"], paths["episodes"], None)


def find_runs(outputs: Path, patterns: Sequence[str]) -> tuple[list[Run], list[str]]:
    """The runs that `patterns` select (default: all of `outputs`), by name, and why others are left out.

    A pattern is a run name, a glob over run names, the path of a recorded entry (or a glob over
    those), or several of them separated by commas. Raises UserError if one selects nothing, or if
    no selected run is readable.
    """
    if any(not _split([pattern]) for pattern in patterns):
        raise UserError("an empty name selects no run; without any name, all of them are taken")
    known = _known_names(outputs)
    selected: dict[Path, RunFiles] = {}
    for pattern in _split(patterns) or ["*"]:
        matches = _matches(pattern, outputs, known)
        if not matches:
            wanted = "runs" if pattern == "*" else f"run that matches {pattern!r}"
            raise UserError(f"no {wanted} under {outputs.absolute()}{nearest(pattern, known)}")
        selected.update({files.folder.absolute(): files for files in matches})
    runs, left_out = [], []
    for files in sorted(selected.values(), key=lambda files: files.name):
        try:
            runs.append(load_run(files))
        except UserError as error:
            left_out.append(f"{files.name}: {error}")
    if not runs:
        raise UserError(f"none of the {len(left_out)} runs is readable; the first is {left_out[0]}")
    return runs, left_out


def _split(patterns: Sequence[str]) -> list[str]:
    return [part.strip() for text in patterns for part in text.split(",") if part.strip()]


def _known_names(outputs: Path) -> set[str]:
    trained = {path.parent.name for path in outputs.glob("*/config.yaml")}
    evaluated = {path.stem for path in (outputs / EVALUATIONS).glob("*.csv")}
    episodes = {f"{name}_episodes" for name in evaluated}
    return trained | (evaluated - episodes)


def _matches(pattern: str, outputs: Path, known: Iterable[str]) -> list[RunFiles]:
    name = pattern.rstrip("/").rsplit("/", 1)[-1]
    if "/" not in pattern or Path(pattern).parent.absolute() == outputs.absolute():
        names = fnmatch.filter(known, name)
        return [
            RunFiles.of_output(each, outputs) for each in names if ARCHIVED not in each or ARCHIVED in name
        ]
    entries = [Path(path) for path in glob.glob(pattern)]
    return [RunFiles.of_entry(path) for path in entries if (path / "manifest.json").is_file()]


def load_run(files: RunFiles) -> Run:
    """Read one run. Raises UserError if a file is damaged, or if nothing says which game it played."""
    config_path = files.folder / "config.yaml"
    config = load_saved_config(config_path) if config_path.is_file() else None
    info = read_status(files.folder / "run.json")
    game, label, seed = _identity(files.name, config)
    evaluations = tuple(best_rows(read_evaluations(files.evaluation)))
    history = read_history(files.folder / "metrics.jsonl")
    return Run(files.name, game, label, seed, config, evaluations, history, info, files.folder, files.events)


def _identity(name: str, config: Config | None) -> tuple[str, str, int]:
    """Game, label and seed, from the config and from a name of the form <Game>-<label>-seed_<seed>."""
    parts = RUN_NAME.fullmatch(name)
    if config is None:
        if parts is None:
            raise UserError(f"{name!r} has no config.yaml and is not named <Game>-<config>-seed_<seed>")
        return parts["game"], parts["label"] + parts["rest"], int(parts["seed"])
    game = game_of(config.BasicSettings.env_name)
    label = parts["label"] + parts["rest"] if parts else name.removeprefix(f"{game}-")
    model = config.JointTrainAgent.ModelType
    if ({"STORM", "GITSTORM"} - {model}) & set(label.split("-")):  # the name says another model
        label += f"-{model}"
    if config.BasicSettings.ReleaseQuirks and "quirks" not in label.lower():
        label += "-ReleaseQuirks"
    return game, label, config.BasicSettings.Seed
