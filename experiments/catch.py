"""Trains STORM and GIT-STORM on Diagnostic/Catch-v0 over several seeds and evaluates them.

    python experiments/catch.py --seeds 0 1 2 3 4 [--out results/catch]

Runs go to outputs/ of the present folder, two at a time on one thread each; a run that is there
already is continued or, if finished, only evaluated. Writes <out>/summary.json: for each run the
return of 200 evaluation episodes and the first training step at which 50 episodes in a row had
averaged 0.8.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the command works from anywhere

import torch

from run_directory import RunDirectory, machine_facts
from utils import OneLineParser, run_cli, write_atomically

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("STORM", "GITSTORM")
TARGET = 0.8  # mean return; 1 is perfect, random play -0.6
AVERAGED = 50  # training episodes
EVALUATED = 200  # evaluation episodes
AT_A_TIME = 2


def run_name(model: str, seed: int) -> str:
    """The name of a run, a folder of outputs/."""
    return f"Catch-{model}-catch-seed_{seed}"


def start_training(model: str, seed: int, folder: Path) -> subprocess.Popen[bytes]:
    """Begin or continue training in `folder`, on one thread; its log is <run>.log there."""
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        f"BasicSettings.config_path={ROOT / 'config_files' / f'{model}-catch.yaml'}",
        f"BasicSettings.Seed={seed}",
        f"BasicSettings.n={run_name(model, seed)}",
        "BasicSettings.device=cpu",
        "BasicSettings.silent=True",
    ]
    with (folder / f"{run_name(model, seed)}.log").open("wb") as log:
        return subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )


def training_returns(model: str, seed: int, folder: Path) -> list[tuple[int, float]]:
    """(step, return) of every training episode logged so far."""
    file = RunDirectory(run_name(model, seed), folder).metrics_file
    if not file.is_file():
        return []
    lines = [line for line in file.read_text().split("\n")[:-1] if "_reward" in line]  # whole lines only
    records = [json.loads(line) for line in lines]
    return [
        (record["step"], value)
        for record in records
        for tag, value in record.items()
        if tag.startswith("sample/") and tag.endswith("_reward")
    ]


def steps_needed(returns: list[tuple[int, float]]) -> int | None:
    """The first step at which the last 50 episodes average 0.8; None if there is none."""
    for end in range(AVERAGED, len(returns) + 1):
        if sum(value for _, value in returns[end - AVERAGED : end]) >= TARGET * AVERAGED:
            return returns[end - 1][0]
    return None


def stop(process: subprocess.Popen[bytes]) -> int:
    """Ask training to save and stop; its exit code."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    return process.wait()


def evaluate(model: str, seed: int, folder: Path) -> list[float]:
    """Returns of 200 fresh episodes with the last checkpoint."""
    name = run_name(model, seed)
    command = [sys.executable, str(ROOT / "eval.py"), f"-run_name={name}", "-checkpoints=last"]
    command += [f"-num_episodes={EVALUATED}", "-device=cpu"]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with (folder / "outputs" / "eval_result" / f"{name}_episodes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    last = max(int(row["step"]) for row in rows)
    return [float(row["return"]) for row in rows if int(row["step"]) == last]


def measure(model: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train and evaluate one run; its row of the summary."""
    process = start_training(model, seed, folder)
    if process.wait():
        raise RuntimeError(f"{run_name(model, seed)} ended with code {process.returncode}; see its log")
    returns = evaluate(model, seed, folder)
    mean = sum(returns) / len(returns)
    variance = sum((value - mean) ** 2 for value in returns) / (len(returns) - 1)
    run = json.loads(RunDirectory(run_name(model, seed), folder).status_file.read_text())
    row = {
        "model": model,
        "seed": seed,
        "steps_to_target": steps_needed(training_returns(model, seed, folder)),
        "trained_steps": run["finished_step"],
        "evaluation_episodes": len(returns),
        "mean_return": mean,
        "standard_error": math.sqrt(variance / len(returns)),
        "training_minutes": round(run["elapsed_s"] / 60, 2),
        "commit": run["commit"],
    }
    print(
        f"{model} seed {seed}: {mean:.2f} ± {row['standard_error']:.2f} over {len(returns)} episodes, "
        f"{TARGET} at step {row['steps_to_target']}, {row['training_minutes']} minutes",
        flush=True,
    )
    return row


def main(arguments: list[str]) -> int:
    """Run all seeds of both models; 1 if any stays below the target."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = OneLineParser(prog="experiments/catch.py", description=__doc__, formatter_class=layout)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="default 0 1 2 3 4")
    parser.add_argument("--out", type=Path, default=Path("results/catch"), help="folder of the summary")
    options = parser.parse_args(arguments)
    pairs = [(model, seed) for seed in options.seeds for model in MODELS]
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        rows = list(pool.map(lambda pair: measure(*pair, Path.cwd()), pairs))
    summary = {
        "command": " ".join(["python", "experiments/catch.py", *arguments]),
        **machine_facts(torch.device("cpu")),
        "threads_per_run": 1,
        "target": TARGET,
        "averaged_training_episodes": AVERAGED,
        "runs": rows,
    }
    write_atomically(
        options.out / "summary.json", lambda file: file.write(json.dumps(summary, indent=1).encode())
    )
    reached = sum(row["mean_return"] >= TARGET for row in rows)
    print(f"{reached} of {len(rows)} runs reach {TARGET}; wrote {options.out / 'summary.json'}")
    return int(reached < len(rows))


if __name__ == "__main__":
    run_cli(main)
