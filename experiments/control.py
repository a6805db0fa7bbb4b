"""Trains STORM and GIT-STORM on the DeepMind Control suite from states, beside published curves.

    python experiments/control.py                                # four tasks, two seeds, both models
    python experiments/control.py --tasks walker-walk --seeds 0 1 2 --models STORM-control
    python experiments/control.py --tasks CartPole-v1 --episodes 100 JointTrainAgent.SampleMaxSteps=30_000
    python experiments/control.py --out mixers --variant latents Models.WorldModel.StateMixer=latent_attention

Runs go on two at a time, on one thread each, in the current folder; typed again the command continues
them. Every finished run is recorded at once, in <out>/<task>.json, and drawn beside DreamerV3, DMPO and
PPO at the same simulator steps (results/published_control.json).
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import statistics
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configuration.loading import load_config
from environments.single import action_repeat
from experiments.control_figure import draw
from experiments.training import (
    AT_A_TIME,
    ROOT,
    evaluate,
    experiment_facts,
    run_facts,
    saved_steps,
    start_training,
    training_returns,
)
from utils import OneLineParser, run_cli, write_atomically

TASKS = ("cartpole-balance", "reacher-easy", "walker-stand", "cartpole-swingup")
MODELS = ("STORM-control", "GITSTORM-control")
PUBLISHED = ROOT / "results" / "published_control.json"
WINDOW = 10_000  # simulator steps, the last ones, that the training return is averaged over


@dataclass(frozen=True)
class Run:
    """One run of the grid; `variant` names its settings if they are not those of the config."""

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
        """Its name among all runs."""
        return f"{self.task}-{self.label.replace(' ', '-')}-seed_{self.seed}"

    @property
    def environment(self) -> str:
        """Gymnasium's id; tasks without a version are those of dm_control."""
        return self.task if re.search(r"-v\d+$", self.task) else f"dm_control/{self.task}-v0"


def measure(run: Run, overrides: list[str], episodes: int, folder: Path) -> dict[str, Any]:
    """Train one run, or go on with it; evaluate its last checkpoint; return its row."""
    settings = [f"BasicSettings.env_name={run.environment}", f"BasicSettings.Seed={run.seed}", *overrides]
    process = start_training(run.name, run.model, settings, folder)
    if process.wait():
        raise RuntimeError(f"{run.name} ended with code {process.returncode}; see {run.name}.log")
    config = load_config([f"BasicSettings.config_path={ROOT / 'config_files' / run.model}.yaml", *settings])
    repeat = action_repeat(run.environment, config.Environment)
    returns = [(step * repeat, value) for step, value in training_returns(run.name, folder)]
    facts = run_facts(run.name, folder)
    last = facts["trained_steps"] * repeat
    row = {
        "model": run.label,
        "seed": run.seed,
        "settings": overrides,
        "simulator_steps": last,
        "final_training_return": statistics.fmean(value for at, value in returns if at > last - WINDOW),
        "evaluation_returns": evaluate(run.name, saved_steps(run.name, folder)[-1], episodes, folder),
        "decisions_per_s": round(facts["trained_steps"] / (60 * facts["training_minutes"]), 2),
        **facts,
        "training_returns": returns,
    }
    print(
        f"{run.name}: {row['final_training_return']:.0f} over the last {WINDOW} simulator steps, evaluated "
        f"{statistics.fmean(row['evaluation_returns']):.0f}, {facts['training_minutes']:.0f} minutes",
        flush=True,
    )
    return row


def record(path: Path, task: str, row: dict[str, Any], facts: dict[str, Any]) -> None:
    """Put a run's row into the record of its task, in place of an earlier one of the same run."""
    kept = json.loads(path.read_text())["runs"] if path.is_file() else []
    same = [each["model"] == row["model"] and each["seed"] == row["seed"] for each in kept]
    rows = [each for each, is_same in zip(kept, same, strict=True) if not is_same] + [row]
    rows.sort(key=lambda each: (each["model"], each["seed"]))
    content = json.dumps({**facts, "task": task, "window": WINDOW, "runs": rows}, indent=1)
    write_atomically(path, lambda file: file.write(content.encode()))


def main(arguments: list[str]) -> int:
    """Run the grid; the first seed of every task and model comes first."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = OneLineParser(prog="experiments/control.py", description=__doc__, formatter_class=layout)
    parser.add_argument("overrides", nargs="*", help="settings besides, as Section.Key=value")
    parser.add_argument("--tasks", nargs="+", default=TASKS, help=f"default {' '.join(TASKS)}")
    parser.add_argument("--models", nargs="+", default=MODELS, help=f"configs, default {' '.join(MODELS)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="default 0 1")
    parser.add_argument("--variant", default="", help="what runs with these settings are called")
    parser.add_argument("--episodes", type=int, default=10, help="of the evaluation, default 10")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "results" / "control", help="folder of the records"
    )
    options = parser.parse_args(arguments)
    facts, recording = experiment_facts("control.py", arguments), threading.Lock()
    grid = itertools.product(options.seeds, options.tasks, options.models)

    def finish(seed: int, task: str, model: str) -> None:
        run = Run(task, model, options.variant, seed)
        row = measure(run, options.overrides, options.episodes, Path.cwd())
        with recording:
            record(options.out / f"{task}.json", task, row, facts)
            draw(sorted(options.out.glob("*.json")), PUBLISHED, options.out / "control.png")

    with ThreadPoolExecutor(AT_A_TIME) as pool:
        list(pool.map(lambda cell: finish(*cell), grid))
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    run_cli(main)
