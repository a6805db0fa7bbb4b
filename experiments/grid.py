"""A grid of tasks, models and seeds: run, recorded and drawn beside published curves.

Runs go on side by side, on one thread each, in the current folder; typed again the command continues
them. Every finished run is recorded at once, in <out>/<task>.json, its evaluated episodes also in
<out>/<task>.csv, and drawn.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from pandas import DataFrame

from configuration.checks import read_value
from configuration.loading import load_config
from configuration.schema import Config
from environments.single import find_spec
from experiments.curves_figure import draw
from experiments.figures import HEALTH, draw_health
from experiments.training import (
    add_at_a_time,
    command_facts,
    evaluate,
    experiment_parser,
    read_record,
    run_facts,
    saved_steps,
    train,
    training_curves,
    training_returns,
)
from reporting.tables import write_csv
from sweeping.options import FROM_GRID
from utils import OneLineParser, UserError, as_file_name, locked, resolve_device, write_atomically

GIVEN = {*FROM_GRID, "BasicSettings.n", "BasicSettings.Restart"}  # settings that a grid gives its runs


@dataclass(frozen=True)
class Suite:
    """What the runs of a grid have in common, and its defaults."""

    script: str  # experiments/<script>.py records in results/<script>/
    tasks: Sequence[str]
    models: Callable[[str], Sequence[str]]  # configs that a task is learned with
    seeds: Callable[[str], Sequence[int]]  # of a task
    environment: Callable[[str], str]  # Gymnasium's id of a task
    window: int  # steps, the last ones, that the training return is averaged over
    episodes: int  # of an evaluation
    every_checkpoint: bool = False  # is evaluated, or the last one only
    step: str = "agent_steps"  # what curves count: steps of the agent, or of the simulator
    repeat: Callable[[str, Config], int] = lambda environment, config: 1  # such steps in one of the agent
    published: Path | None = None  # curves beside which all tasks are drawn; None: each has its figure
    levels: Callable[[str], dict[str, float]] = lambda task: {}  # returns of a task to draw, by name
    compare: Callable[[str, list[dict[str, Any]]], dict[str, Any]] = lambda task, runs: {}
    variants: Callable[[str], dict[str, list[str]]] = lambda model: {}  # settings of a model by name
    played_too: Callable[[Run], str] = lambda run: ""  # setting that its last checkpoint is also played with


@dataclass(frozen=True)
class Run:
    """One run of a grid; `variant` names its settings if they are not those of the config."""

    task: str
    model: str
    variant: str
    seed: int

    @property
    def label(self) -> str:
        """Config and variant."""
        return f"{self.model} {self.variant}".strip()

    @property
    def name(self) -> str:
        """Its name among all runs, and of its files."""
        return as_file_name(f"{self.task}-{self.label.replace(' ', '-')}-seed_{self.seed}")


def configure(suite: Suite, run: Run, overrides: list[str]) -> tuple[list[str], Config]:
    """Return the settings of a run besides its model's, and its config."""
    environment = suite.environment(run.task)
    settings = [f"BasicSettings.env_name={environment}", f"BasicSettings.Seed={run.seed}", *overrides]
    config = load_config([f"BasicSettings.config_path={run.model}", *settings])
    return settings, config


def measure(
    suite: Suite, run: Run, overrides: list[str], episodes: int, folder: Path, device: str
) -> dict[str, Any]:
    """Train one run, or go on with it; evaluate its checkpoints; return its row."""
    settings, config = configure(suite, run, [f"BasicSettings.device={device}", *overrides])
    train(run.name, run.model, settings, folder)
    repeat = suite.repeat(config.BasicSettings.env_name, config)
    returns = [(step * repeat, value) for step, value in training_returns(run.name, folder)]
    played = partial(evaluate, run.name, episodes=episodes, folder=folder)
    steps = saved_steps(run.name, folder)[0 if suite.every_checkpoint else -1 :]
    evaluated = [(step * repeat, played(step)) for step in steps]
    setting = suite.played_too(run)
    also = {"other_way_returns": played(steps[-1], setting=setting)} if setting else {}
    facts = run_facts(run.name, folder)
    last = facts["trained_steps"] * repeat
    late = [value for at, value in returns if at > last - suite.window]
    row = {
        "model": run.label,
        "seed": run.seed,
        "settings": overrides,
        suite.step: last,
        "final_training_return": statistics.fmean(late) if late else None,
        "evaluation_returns": evaluated[-1][1],
        **also,
        **({"evaluations": evaluated} if suite.every_checkpoint else {}),
        "decisions_per_s": round(facts["trained_steps"] / (60 * facts["training_minutes"]), 2),
        **facts,
        "training_returns": returns,
        "health": training_curves(run.name, HEALTH, folder),
    }
    mean = statistics.fmean(row["evaluation_returns"])
    print(f"{run.name}: evaluated {mean:.4g} after {facts['training_minutes']:.0f} minutes", flush=True)
    return row


def record(suite: Suite, path: Path, row: dict[str, Any], facts: dict[str, Any]) -> None:
    """Put a run's row into the record of its task, in place of an earlier one of the same run."""
    kept = read_record(path)["runs"] if path.is_file() else []
    runs = {(each["model"], each["seed"]): each for each in [*kept, row]}
    rows = [runs[key] for key in sorted(runs)]
    record = {**facts, **suite.compare(facts["task"], rows), "runs": rows}
    write_atomically(path, json.dumps(record, indent=1))
    write_csv(path.parent, path.stem, evaluated_episodes(record))
    draw_health(record, path.with_name(f"{path.stem}_health.png"))


def evaluated_episodes(record: dict[str, Any]) -> DataFrame:
    """Return a row for every episode of every evaluated checkpoint of a record."""
    rows = [
        (run["model"], run["seed"], step, episode, value)
        for run in record["runs"]
        for step, returns in run.get("evaluations", [(run[record["step"]], run["evaluation_returns"])])
        for episode, value in enumerate(returns)
    ]
    return DataFrame(rows, columns=["model", "seed", record["step"], "episode", "return"])


def grid_parser(suite: Suite, description: str) -> OneLineParser:
    """Return the parser of a grid's command line."""
    parser = experiment_parser(suite.script, description)
    parser.add_argument("overrides", nargs="*", help="settings besides, as Section.Key=value")
    parser.add_argument("--tasks", nargs="+", default=suite.tasks, help=f"default {' '.join(suite.tasks)}")
    for name, of in (("models", suite.models), ("seeds", suite.seeds)):
        defaults = ", ".join(f"{' '.join(map(str, of(task)))} of {task}" for task in suite.tasks)
        kind = type(of(suite.tasks[0])[0])
        parser.add_argument(f"--{name}", type=kind, nargs="+", help=f"default {defaults}")
    parser.add_argument("--variant", default="", help="what runs with these settings are called")
    add_at_a_time(parser)
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:N, mps or auto")
    episodes = f"of an evaluation, default {suite.episodes}"
    parser.add_argument("--episodes", type=int, default=suite.episodes, help=episodes)
    return parser


def cells(suite: Suite, options: argparse.Namespace) -> list[Run]:
    """Return the runs of a grid; the first seed of every task and model comes first."""
    runs = [
        Run(task, model, variant, seed)
        for task in (short_name(suite, task) for task in options.tasks)
        for seed in options.seeds or suite.seeds(task)
        for model in options.models or suite.models(task)
        for variant in suite.variants(model) or [options.variant]
    ]
    return sorted(runs, key=lambda run: run.seed)


def short_name(suite: Suite, task: str) -> str:
    """Return the short name of a task that is given by its environment's id; the id if there is none."""
    short = re.sub(r"^.*/|-v\d+$", "", task)
    return short if suite.environment(short) == task else task


def checked_runs(suite: Suite, options: argparse.Namespace) -> dict[Run, list[str]]:
    """Return the runs of a grid, each once, and what of their settings is not their config's.

    Raises:
        UserError: a run has no such environment, model or setting, a setting is one that the grid gives,
            or no episode is evaluated.
    """
    given = {override.partition("=")[0] for override in options.overrides} & GIVEN
    if given:
        raise UserError(f"{', '.join(sorted(given))}: the grid gives it, by --tasks, --models and --seeds")
    read_value("Evaluation.NumEpisodes", options.episodes, "--episodes: ")
    runs = {
        run: [*suite.variants(run.model).get(run.variant, []), *options.overrides]
        for run in cells(suite, options)
    }
    for run, overrides in runs.items():
        find_spec(configure(suite, run, overrides)[1].BasicSettings.env_name)
    return runs


def run_grid(suite: Suite, description: str, arguments: list[str]) -> int:
    """Run the grid that a command line asks for."""
    options = grid_parser(suite, description).parse_args(arguments)
    if options.variant and any(map(suite.variants, chain(*map(suite.models, suite.tasks)))):
        raise UserError(f"--variant {options.variant}: {suite.script} has variants of its own")
    runs = checked_runs(suite, options)
    for path in options.out.glob("*.json"):
        read_record(path)  # now, rather than when a run is done
    device = str(resolve_device(options.device))
    command = command_facts(suite.script, arguments, options.at_a_time)
    facts, recording = {"window": suite.window, "step": suite.step}, threading.Lock()

    def finish(run: Run) -> None:
        row = command | measure(suite, run, runs[run], options.episodes, Path.cwd(), device)
        options.out.mkdir(parents=True, exist_ok=True)
        with recording, locked(options.out):  # from threads, and from other commands
            of_task = facts | {"task": run.task, "levels": suite.levels(run.task)}
            path = options.out / f"{as_file_name(run.task)}.json"
            record(suite, path, row, of_task)
            if suite.published is None:
                draw([path], None, path.with_suffix(".png"))
            else:
                draw(sorted(options.out.glob("*.json")), suite.published, options.out / f"{suite.script}.png")

    with ThreadPoolExecutor(options.at_a_time) as pool:
        list(pool.map(finish, runs))
    print(f"wrote {options.out}")
    return 0
