"""What the experiments share: train runs in processes of their own, read their returns, evaluate them."""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configuration.keys import Key
from configuration.loading import differences, find_config, load_saved_config
from configuration.schema import Config, keys_of
from evaluation.tables import best_rows, episode_table, read_episodes, read_evaluations
from reporting.statistics import sum_of_means
from run_files.directory import RunDirectory
from run_files.manifest import read_json
from run_files.metrics import read_metrics
from run_files.provenance import machine_facts, source_commit
from run_files.weights import list_checkpoints
from sweeping.local import ends_with_parent, wait_until_free
from utils import REPOSITORY, OneLineParser, UserError, disk_errors, write_atomically

SETTLED = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "TQDM_MININTERVAL": "60"}  # for logs in order
CURVE = 200  # points
AT_A_TIME = 2  # runs side by side, on one thread each
MOST_AT_A_TIME = 16


def experiment_parser(script: str, description: str) -> OneLineParser:
    """The parser of a script's command line, with what all of them take."""
    source_commit()  # of the code that runs, whatever is committed before it writes
    name, layout = f"python -m experiments.{script}", argparse.RawDescriptionHelpFormatter
    parser = OneLineParser(prog=name, description=description, formatter_class=layout)
    parser.add_argument(
        "--out", type=Path, default=REPOSITORY / "results" / script, help="folder of the results"
    )
    return parser


def add_at_a_time(parser: OneLineParser) -> None:
    """Let a command line say how many runs go side by side."""
    together = {"type": int, "default": AT_A_TIME, "choices": range(1, MOST_AT_A_TIME + 1), "metavar": "N"}
    parser.add_argument("--at-a-time", **together, help=f"runs, 1 to {MOST_AT_A_TIME} (default {AT_A_TIME})")


def add_settings(parser: OneLineParser, defaults: Any) -> None:
    """Let a command line change the numbers of an experiment, a dataclass of keys."""

    def read(key: Key, text: str) -> Any:
        try:
            return key.read(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: must be {key.expected}") from None

    for name, key in keys_of(defaults):
        meaning = f"{key.meaning} (default {key.default})"
        parser.add_argument(f"--{name}", type=partial(read, key), default=key.default, help=meaning)


def read_settings(options: argparse.Namespace, defaults: Any) -> Any:
    """Return the dataclass of `add_settings` with what the command line says."""
    return replace(defaults, **{name: getattr(options, name) for name, _ in keys_of(defaults)})


def write_record(path: Path, script: str, arguments: list[str], record: dict[str, Any]) -> None:
    """Write what a script found, with its command, source and machine, and how its runs shared that."""
    facts = machine_facts(torch.device("cpu")) | command_facts(script, arguments)
    write_atomically(path, json.dumps({**facts, **record}, indent=1))


def read_record(path: Path) -> dict[str, Any]:
    """Read a record of runs; raise UserError if the file is something else."""
    record = read_json(path)
    if not {"task", "runs"} <= record.keys():
        raise UserError(f"{path}: not a record of runs; move it away, or choose another --out")
    return record


def command_facts(script: str, arguments: list[str], at_a_time: int = AT_A_TIME) -> dict[str, Any]:
    """The command of runs (but where to), and how they shared the machine."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--out")
    _, arguments = parser.parse_known_args(arguments)
    return {
        "command": shlex.join(["python", "-m", f"experiments.{script}", *arguments]),
        "threads_per_run": 1,
        "runs_at_a_time": at_a_time,
    }


def start_training(run_name: str, config: str, overrides: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """Begin or continue the run `run_name` in `folder`, on one CPU thread unless `overrides` say otherwise.

    Args:
        config: as `find_config` takes it. overrides: settings besides.
    """
    command = [
        str(REPOSITORY / "train.py"),
        f"BasicSettings.config_path={find_config(config).resolve()}",
        f"BasicSettings.n={run_name}",
        "BasicSettings.device=cpu",
        "BasicSettings.NumThreads=1",
        "BasicSettings.silent=True",
        *overrides,
    ]
    return start(command, run_name, folder)


def train(run_name: str, config: str, overrides: list[str], folder: Path) -> None:
    """Begin or continue a run, and wait for its end."""
    check_end(start_training(run_name, config, overrides, folder), run_name)


def start(command: list[str], run_name: str, folder: Path) -> subprocess.Popen[bytes]:
    """Begin a Python command on a run, once nobody has it; it saves and ends if this process ends.

    Its output is added to <run_name>.log in `folder`.
    """
    wait_until_free(str(RunDirectory(run_name, folder).lock_file))
    path = folder / f"{run_name}.log"
    with disk_errors(path):
        log = path.open("ab")
    with log:
        line = ends_with_parent(command)
        return subprocess.Popen(line, cwd=folder, stdout=log, stderr=log, env=os.environ | SETTLED)


def check_end(process: subprocess.Popen[bytes], run_name: str) -> None:
    """Wait for a process of a run; raise UserError if it failed."""
    if process.wait():
        raise UserError(f"{run_name} ended with code {process.returncode}; see {run_name}.log")


def training_returns(run_name: str, folder: Path) -> list[tuple[int, float]]:
    """(step, return) of every training episode that a run has logged so far."""
    records = read_metrics(RunDirectory(run_name, folder).metrics_file)
    returns = [(record.step, record.episode_return) for record in records]
    return [(step, value) for step, value in returns if value is not None]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of a mean (Student's t); of one value that value, twice."""
    mean, low, high = sum_of_means([np.asarray(values, float)])
    return (mean, mean) if low is None else (low, high)


def training_curves(run_name: str, tags: Iterable[str], folder: Path) -> dict[str, list[float]]:
    """Step and scalars of at most `CURVE` logged updates of all models; beside the tags there is "step"."""
    tags = list(tags)
    records = read_metrics(RunDirectory(run_name, folder).metrics_file)
    logged = [record for record in records if all(record.values.get(tag) is not None for tag in tags)]
    logged = logged[:: math.ceil(len(logged) / CURVE) or 1]
    return {"step": [record.step for record in logged]} | {
        tag: [float(f"{record.values[tag]:.5g}") for record in logged] for tag in tags
    }


def saved_steps(run_name: str, folder: Path) -> list[int]:
    """Steps of a run's checkpoints, ascending."""
    return list_checkpoints(RunDirectory(run_name, folder).checkpoints)


def evaluate(run_name: str, step: int, episodes: int, folder: Path, setting: str = "") -> list[float]:
    """Returns of fresh episodes with a run's checkpoint, under a setting, played unless they were before.

    On the device that the run is trained on.
    """
    if not evaluated_returns(run_name, step, episodes, folder, setting):
        command = [str(REPOSITORY / "eval.py"), f"-run_name={run_name}"]
        command += [f"-checkpoints={step}", f"-num_episodes={episodes}"]
        command += ["-protocol=fair", "Evaluation.Greedy=False"]  # comparable, whatever the run's settings
        command += [setting] if setting else []
        check_end(start(command, run_name, folder), run_name)
    return evaluated_returns(run_name, step, episodes, folder, setting)


def evaluated_returns(
    run_name: str, step: int, episodes: int, folder: Path, setting: str = ""
) -> list[float]:
    """Returns of the fair evaluation of a checkpoint that has so many episodes; none if there is none."""
    table = RunDirectory(run_name, folder).table
    wanted = (step, episodes, f"with {setting}" if setting else "")
    rows = [row for row in read_evaluations(table) if (row.step, row.episodes, row.how) == wanted]
    played = read_episodes(episode_table(table))
    return [episode.score for row in best_rows(rows) for episode in played.get(row.key, [])]


def run_facts(run_name: str, folder: Path) -> dict[str, object]:
    """What a run's own record says of its settings, length, time, source and machine."""
    directory = RunDirectory(run_name, folder)
    run, config = json.loads(directory.status_file.read_text()), load_saved_config(directory.config_file)
    return {
        "changed": {key: value for key, _, value in differences(Config(), config)},
        "trained_steps": run["finished_step"],
        "training_minutes": round(run["elapsed_s"] / 60, 2),
        "training_cpu_minutes": round(run["cpu_s"] / 60, 2) if "cpu_s" in run else None,
        **{key: run[key] for key in ("commit", "device", "hardware", "versions")},
    }
