"""Trains STORM and GIT-STORM on Diagnostic/Catch-v0 over several seeds and evaluates them.

    python experiments/catch.py [Section.Key=value ...] [--seeds 0 1 2 3 4] [--enough 0.9] [--out DIR]

Runs go to outputs/ of the present folder, two at a time on one thread each; a run that is there
already is continued or, if finished, only evaluated. Writes <out>/summary.json: for each run the
return of 200 evaluation episodes and the first training step at which 50 episodes in a row had
averaged 0.8; and <out>/health.png: what to look at while training, of the first seed.
"""

from __future__ import annotations

import math
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.figures import HEALTH, draw_health
from experiments.training import (
    evaluate,
    experiment_parser,
    run_facts,
    saved_steps,
    side_by_side,
    start_training,
    stop,
    training_curves,
    training_returns,
    write_record,
)
from utils import run_cli

MODELS = ("STORM", "GITSTORM")
TARGET = 0.8  # mean return; 1 is perfect, random play -0.6
AVERAGED = 50  # training episodes
EVALUATED = 200  # evaluation episodes
PAUSE = 1.0  # seconds between two looks at a run
SAVE_EVERY = 100  # steps between checkpoints where training may stop early
SAVED = (0, 75)  # exit codes of a run that finished, or that saved and stopped


def run_name(model: str, seed: int) -> str:
    """The name of a run, a folder of outputs/."""
    return f"Catch-{model}-catch-seed_{seed}"


def start(model: str, seed: int, folder: Path, *overrides: str) -> subprocess.Popen[bytes]:
    """Begin or continue a run."""
    settings = [f"BasicSettings.Seed={seed}", *overrides]
    return start_training(run_name(model, seed), f"{model}-catch", settings, folder)


def steps_needed(returns: list[tuple[int, float]], mean: float = TARGET) -> int | None:
    """The first step at which the last 50 episodes average `mean`; None if there is none."""
    for end in range(AVERAGED, len(returns) + 1):
        if sum(value for _, value in returns[end - AVERAGED : end]) >= mean * AVERAGED:
            return returns[end - 1][0]
    return None


def train(model: str, seed: int, folder: Path, enough: float, overrides: Sequence[str]) -> None:
    """Train to the end, or until the last 50 training episodes average `enough`."""
    name = run_name(model, seed)
    if steps_needed(training_returns(name, folder), enough) is not None:
        return
    early = [f"JointTrainAgent.SaveEverySteps={SAVE_EVERY}"] if enough < math.inf else []
    process = start(model, seed, folder, *early, *overrides)
    while process.poll() is None:
        time.sleep(PAUSE)
        if steps_needed(training_returns(name, folder), enough) is not None:
            stop(process)
    if process.returncode not in SAVED:
        raise RuntimeError(f"{name} ended with code {process.returncode}; see its log")


def measure(model: str, seed: int, folder: Path, enough: float, overrides: Sequence[str]) -> dict[str, Any]:
    """Train and evaluate one run; its row of the summary."""
    train(model, seed, folder, enough, overrides)
    name = run_name(model, seed)
    step = saved_steps(name, folder)[-1]
    returns = evaluate(name, step, EVALUATED, folder)
    row = {
        "model": model,
        "seed": seed,
        "steps_to_target": steps_needed(training_returns(name, folder)),
        "evaluated_step": step,
        "evaluation_episodes": len(returns),
        "mean_return": statistics.fmean(returns),
        "standard_error": statistics.stdev(returns) / math.sqrt(len(returns)),
        **run_facts(name, folder),
    }
    print(
        f"{model} seed {seed}: {row['mean_return']:.2f} ± {row['standard_error']:.2f} over {len(returns)} "
        f"episodes at step {step}, {TARGET} at step {row['steps_to_target']}, "
        f"{row['training_minutes']} minutes",
        flush=True,
    )
    return row


def main(arguments: list[str]) -> int:
    """Run all seeds of both models; 1 if any stays below the target."""
    parser = experiment_parser("catch", __doc__, seeds=[0, 1, 2, 3, 4])
    parser.add_argument(
        "--enough",
        type=float,
        default=math.inf,
        help=f"stop training once {AVERAGED} training episodes average this much (default: never)",
    )
    parser.add_argument("overrides", nargs="*", help="settings besides the preset's, as Section.Key=value")
    options = parser.parse_args(arguments)
    folder = Path.cwd()

    def measure_here(model: str, seed: int) -> dict[str, Any]:
        return measure(model, seed, folder, options.enough, options.overrides)

    rows = side_by_side(measure_here, MODELS, options.seeds)
    summary = {
        "target": TARGET,
        "averaged_training_episodes": AVERAGED,
        "runs": rows,
        "health": {
            model: training_curves(run_name(model, options.seeds[0]), HEALTH, folder) for model in MODELS
        },
    }
    write_record(options.out / "summary.json", "catch", arguments, summary)
    draw_health(summary, options.out / "health.png")
    reached = sum(row["mean_return"] >= TARGET for row in rows)
    print(f"{reached} of {len(rows)} runs reach {TARGET}; wrote {options.out / 'summary.json'}")
    return int(reached < len(rows))


if __name__ == "__main__":
    run_cli(main)
