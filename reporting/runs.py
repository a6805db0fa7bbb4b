"""Finding the runs of a folder, and what each of them says about itself."""

from __future__ import annotations

import fnmatch
import glob
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from configuration.loading import differences, load_saved_config
from configuration.schema import Config, schema
from evaluation.scores import game_of, human_normalised
from evaluation.tables import Evaluation, best_rows, read_evaluations
from reporting.published import BENCHMARK_STEP
from run_files.directory import EPISODES, EVALUATIONS, as_outputs
from run_files.manifest import EVALUATED, MANIFEST, TRAINED, read_json
from run_files.metrics import History, read_history
from utils import UserError, nearest

ARCHIVED = ".archived-"  # in the name of a run that was started over; selected only by naming it so
SECONDS_PER_HOUR = 3600
# What runs differ in without being another method.
IDENTITY = {"BasicSettings.Seed", "BasicSettings.env_name", "JointTrainAgent.ModelType"}
NUMBERS = ("finished_step", "sample_max_steps", "elapsed_s")  # of a run.json
RUN_NAME = re.compile(r"(?P<game>[^-]+)-(?P<label>.+?)-seed_(?P<seed>\d+)(?P<rest>.*)")


@dataclass(frozen=True)
class Run:
    """A run as a report reads it from its files."""

    name: str
    env_name: str  # Gymnasium id
    label: str  # the method that is compared: its config file, and what sets it apart
    seed: int
    config: Config | None  # None where only an evaluation is left
    evaluations: tuple[Evaluation, ...]  # those that count, one a step, in order of steps
    history: History
    info: dict[str, Any]  # run.json, {} if there is none
    folder: Path

    @property
    def game(self) -> str:
        """What it played: "Boxing" for ALE/Boxing-v5."""
        return game_of(self.env_name)

    @property
    def short_commit(self) -> str:
        """What its source was, hashes cut to twelve digits; "" if that is not known."""
        return re.sub(r"\b([0-9a-f]{12})[0-9a-f]+", r"\1", str(self.info.get("commit") or ""))

    @property
    def is_atari(self) -> bool:
        """Whether it played one of the 26 Atari games, not something else of the same name."""
        return self.normalised(0.0) is not None

    def normalised(self, score: float) -> float | None:
        """Return the human-normalised score of a return; None if it did not play one of the 26 games."""
        return human_normalised(self.env_name, score)

    @property
    def last_step(self) -> int:
        """How far it came: to its last evaluation, or what it logged last."""
        return max([self.history.last_step, *(each.step for each in self.evaluations)])

    @property
    def scored(self) -> Evaluation | None:
        """The evaluation that counts: of step 100,000 of an Atari game, else the last; None if none."""
        at_benchmark = [each for each in self.evaluations if self.is_atari and each.step == BENCHMARK_STEP]
        return (at_benchmark or list(self.evaluations[-1:]) or [None])[0]

    @property
    def benchmarked(self) -> bool:
        """Whether the score is one of step 100,000 of an Atari game."""
        return self.is_atari and self.scored is not None and self.scored.step == BENCHMARK_STEP

    @property
    def deviations(self) -> list[str]:
        """The settings, as Key=value, that shape the result and differ from the papers' (the defaults)."""
        if self.config is None:
            return []
        changed = differences(Config(), self.config)
        return [f"{key}={value}" for key, _, value in changed if _shapes_the_result(key, self.config)]


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
    folder: Path  # holds config.yaml, metrics.jsonl, run.json and videos/
    tables: dict[str, Path]  # of evaluations and of their episodes, by EVALUATED

    @staticmethod
    def of_output(name: str, outputs: Path) -> RunFiles:
        """Return the files of run `name` under `outputs`."""
        tables = (outputs / EVALUATIONS / f"{name}{ending}.csv" for ending in ("", EPISODES))
        return RunFiles(name, outputs / name, dict(zip(EVALUATED, tables, strict=True)))

    @staticmethod
    def of_entry(folder: Path) -> RunFiles:
        """Return the files of an entry of results/."""
        name = "/".join(folder.absolute().parts[-3:])
        return RunFiles(name, folder, {table: folder / table for table in EVALUATED})

    @property
    def trained(self) -> dict[str, Path]:
        """What training wrote of a recorded run, by name."""
        return {name: self.folder / name for name in TRAINED}

    @property
    def evaluated(self) -> dict[str, Path]:
        """What evaluations wrote of it, by name, as far as it is there."""
        return {name: path for name, path in self.tables.items() if path.exists()}


def find_runs(outputs: Path, patterns: Sequence[str]) -> tuple[list[Run], list[str]]:
    """Return the runs that `patterns` select (default: all of `outputs`), and why others are left out.

    A pattern is a run name, a glob over run names, the path of a recorded entry (or a glob over
    those), or several of them separated by commas. Raise UserError if one selects nothing, or if
    no selected run is readable.
    """
    known = _known_names(outputs)
    lists = [
        [text] if text in known else re.findall(r"[^\s,](?:[^,]*[^\s,])?", text) for text in patterns or ["*"]
    ]
    if not all(lists):
        raise UserError("an empty name selects no run; without any name, all of them are taken")
    selected: dict[Path, RunFiles] = {}
    for pattern in itertools.chain(*lists):
        matches = _matches(pattern, outputs, known)
        if not matches:
            missing = "runs" if pattern == "*" else f"run that matches {pattern!r}"
            raise UserError(f"no {missing} under {outputs.absolute()}{nearest(pattern, known)}")
        selected.update({files.folder.absolute(): files for files in matches})
    runs, left_out = [], []
    for files in sorted(selected.values(), key=lambda files: files.name):
        try:
            runs.append(load_run(files))
        except (UserError, OSError, OverflowError) as error:
            left_out.append(f"{files.name}: {error}")
    if not runs:
        raise UserError(f"none of the {len(left_out)} runs is readable; the first is {left_out[0]}")
    return _told_apart(runs), left_out


def _known_names(outputs: Path) -> set[str]:
    trained = {path.parent.name for path in outputs.glob("*/config.yaml")}
    evaluated = {path.stem for path in (outputs / EVALUATIONS).glob("*.csv")}
    return trained | {name for name in evaluated if not name.endswith(EPISODES)}


def _matches(pattern: str, outputs: Path, known: Iterable[str]) -> list[RunFiles]:
    path = as_outputs(pattern)
    if path.name == pattern.rstrip("/") or path.parent.absolute() == outputs.absolute():
        found = [path.name] if path.name in known else fnmatch.filter(known, path.name)
        names = [name for name in found if ARCHIVED not in name or ARCHIVED in pattern]
        return [RunFiles.of_output(name, outputs) for name in names]
    entries = [path, *map(Path, glob.glob(str(path)))]
    return [RunFiles.of_entry(entry) for entry in entries if (entry / MANIFEST).is_file()]


def _told_apart(runs: Sequence[Run]) -> list[Run]:
    """The runs, where those of one label played a game with different settings with these in their labels."""
    groups: dict[tuple[str, str], list[set[str]]] = {}
    for run in runs:
        if run.config is not None:
            groups.setdefault((run.label, run.env_name), []).append(set(run.deviations))
    differing: dict[str, set[str]] = {}
    for (label, _), settings in groups.items():
        differing.setdefault(label, set()).update(set.union(*settings) - set.intersection(*settings))
    own = [[text for text in run.deviations if text in differing[run.label]] for run in runs]
    names = (" ".join(re.sub(r"^[\w.]*\.", "", text) for text in texts) for texts in own)
    return [replace(run, label=f"{run.label} {name}".strip()) for run, name in zip(runs, names, strict=True)]


def load_run(files: RunFiles) -> Run:
    """Read one run. Raise UserError if a file is damaged, or if nothing says which game it played."""
    config_path = files.folder / "config.yaml"
    config = load_saved_config(config_path) if config_path.is_file() else None
    table = files.tables[EVALUATED[0]]
    evaluations = tuple(best_rows(read_evaluations(table)))
    endless = [each for each in evaluations if not math.isfinite(each.mean)]
    if endless:
        raise UserError(f"{table}: the mean return of step {endless[0].step} is {endless[0].mean}")
    history, info = read_history(files.folder / "metrics.jsonl"), _read_status(files.folder / "run.json")
    return Run(files.name, *_identity(files.name, config), config, evaluations, history, info, files.folder)


def _read_status(path: Path) -> dict[str, Any]:
    """A run.json, {} if there is none; UserError if it is damaged."""
    status = read_json(path)
    numbers = [status.get(key, 0) for key in NUMBERS]
    if (path.exists() and not status) or not all(isinstance(each, (int, float)) for each in numbers):
        raise UserError(f"{path} is not the status of a run")
    if not all(map(math.isfinite, numbers)):
        raise UserError(f"{path} is not the status of a run: {', '.join(NUMBERS)} must be finite")
    return status


def _identity(name: str, config: Config | None) -> tuple[str, str, int]:
    """Gymnasium id, label and seed, from the config; without one from a name <Game>-<label>-seed_<seed>."""
    if config is None:
        parts = RUN_NAME.fullmatch(name)
        if parts is None:
            raise UserError(f"{name!r} has no config.yaml and is not named <Game>-<config>-seed_<seed>")
        return f"ALE/{parts['game']}-v5", parts["label"] + parts["rest"], int(parts["seed"])
    settings, model = config.BasicSettings, config.JointTrainAgent.ModelType
    label = Path(settings.config_path).stem
    if ({"STORM", "GITSTORM"} - {model}) & set(label.split("-")):  # the file says another model
        label += f"-{model}"
    if settings.ReleaseQuirks and "quirks" not in label.lower():
        label += "-ReleaseQuirks"
    archived = re.search(re.escape(ARCHIVED) + ".*", name)
    return settings.env_name, label + (archived[0] if archived else ""), settings.Seed
