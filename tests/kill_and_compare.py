"""Kill a training run again and again, and compare it with one that was left alone.

    python tests/kill_and_compare.py [--config STORM-tiny] [--num-envs 1] [--kills 20] [--steps 240]
                                     [--seed 0] [-- Section.Key=value ...]

Both runs are real processes of train.py. The kills come at random moments: kill -9 (while the
process starts, while it trains, while it saves), SIGTERM, SIGINT and SIGUSR1. Prints "identical"
and exits 0, or prints what differs and exits 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))  # before this folder, whose own run_files/ would be found

from run_files.states import StateStore  # noqa: E402

NAME = "run"
NOT_FINISHED = 75
KINDS = ("KILL while starting", "KILL", "KILL while saving", "TERM", "INT", "USR1")
CLOCK = ("elapsed", "cpu", "started")  # entries of a state that tell the time of day
POLL_S, PATIENCE_S = 0.002, 600.0


def differences(first: Path, second: Path, name: str = NAME) -> list[str]:
    """What is not bit for bit the same in the run `name` of two folders, wall-clock figures apart.

    Compared are weight files, videos, the lines of metrics.jsonl, and all that the last state
    holds: models, optimizers, replay rows, emulators, generators, acting contexts.
    """
    runs = [folder / "outputs" / name for folder in (first, second)]
    found = []
    for part in ("ckpt", "videos"):
        one, two = ({path.name: path.read_bytes() for path in (run / part).glob("*")} for run in runs)
        found += [f"{part}/{file}" for file in sorted({*one, *two}) if one.get(file) != two.get(file)]
    one, two = (_metrics(run / "metrics.jsonl") for run in runs)
    found += [f"metrics.jsonl: {len(one)} and {len(two)} lines"] if len(one) != len(two) else []
    found += [f"metrics.jsonl, line {i + 1}" for i, pair in enumerate(zip(one, two)) if pair[0] != pair[1]]  # noqa: B905
    return found + _unequal(*(_state(run / "state") for run in runs), "state")


def _metrics(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{tag: value for tag, value in line.items() if not tag.startswith("time/")} for line in lines]


def _state(directory: Path) -> dict[str, Any]:
    saved = StateStore(directory).load()
    rows: dict[int, dict[str, Any]] = {}

    class Rows:
        oldest, count = saved.oldest, saved.count

        def import_rows(self, start: int, values: dict[str, Any]) -> None:
            length = len(values["action"])
            each = {name: torch.from_numpy(array).unbind() for name, array in values.items()}
            rows.update({start + i: {name: each[name][i] for name in each} for i in range(length)})

    saved.restore_rows(Rows())
    state = {name: value for name, value in saved.state.items() if name not in (*CLOCK, "logger")}
    return state | {"rows": rows}


def _unequal(one: Any, two: Any, where: str) -> list[str]:
    if type(one) is not type(two):
        return [where]
    if isinstance(one, dict):
        if one.keys() != two.keys():
            return [f"{where}: keys"]
        return [line for key in one for line in _unequal(one[key], two[key], f"{where}.{key}")]
    if isinstance(one, (list, tuple)):
        pairs = zip(one, two)  # noqa: B905
        lines = [line for i, pair in enumerate(pairs) for line in _unequal(*pair, f"{where}[{i}]")]
        return lines if len(one) == len(two) else [f"{where}: lengths"]
    if isinstance(one, torch.Tensor):
        same = one.dtype == two.dtype and one.shape == two.shape
        one, two = (tensor.reshape(-1).view(torch.uint8) for tensor in (one, two))
        return [] if same and torch.equal(one, two) else [where]
    return [] if one == two or (one != one and two != two) else [where]


class Process:
    """One process of train.py, its messages in a file."""

    def __init__(self, folder: Path, settings: list[str], number: int) -> None:
        self.folder = folder
        self.log = folder / f"messages_{number}.txt"
        command = [sys.executable, str(REPOSITORY / "train.py"), f"BasicSettings.n={NAME}", *settings]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=log)

    def wait_until(self, happened: Any) -> bool:
        """Whether it happened before the process ended."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            if happened():
                return True
            if self.process.poll() is not None:
                return False
            time.sleep(POLL_S)
        raise TimeoutError(f"nothing happened for {PATIENCE_S:.0f} s; see {self.log}")

    def is_training(self) -> bool:
        """Whether it has come so far that it saves when it is asked to stop."""
        return f"run {NAME}:" in self.log.read_text()

    def is_saving(self) -> bool:
        """Whether a file is half-written just now."""
        outputs = self.folder / "outputs" / NAME
        return any(any((outputs / part).glob(".*.tmp")) for part in ("state", "ckpt"))

    def kill(self, kind: str, delay: float) -> bool:
        """Kill it in one of the ways; whether that was before it had finished."""
        if kind != "KILL while starting":
            self.wait_until(self.is_training)
        time.sleep(delay)
        if kind == "KILL while saving":
            self.wait_until(self.is_saving)
        self.process.send_signal(getattr(signal, f"SIG{kind.split()[0]}"))
        code = self.process.wait(PATIENCE_S)
        expected = -signal.SIGKILL if kind.startswith("KILL") else NOT_FINISHED
        if code not in (expected, 0):
            raise SystemExit(f"exit code {code} after {kind}, expected {expected}:\n{self.log.read_text()}")
        return code != 0

    def finish(self) -> None:
        """Wait for its end, which must be that of the run."""
        if self.process.wait(PATIENCE_S):
            raise SystemExit(f"exit code {self.process.returncode}:\n{self.log.read_text()}")


def settings_of(arguments: argparse.Namespace) -> list[str]:
    """The overrides: short, and saved often."""
    steps = arguments.steps
    return [
        f"BasicSettings.config_path={REPOSITORY / 'config_files' / arguments.config}.yaml",
        "BasicSettings.env_name=ALE/KungFuMaster-v5",
        f"BasicSettings.Seed={arguments.seed}",
        "BasicSettings.device=cpu",
        "BasicSettings.NumThreads=1",
        "Environment.MaxEpisodeFrames=200",
        f"JointTrainAgent.NumEnvs={arguments.num_envs}",
        f"JointTrainAgent.SampleMaxSteps={steps}",
        f"JointTrainAgent.BufferMaxLength={steps * 3 // 4}",
        f"JointTrainAgent.BufferWarmUp={steps // 3}",
        f"JointTrainAgent.SaveEverySteps={steps // 5}",
        "JointTrainAgent.LogEverySteps=7",
        *arguments.settings,
    ]


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options, and further settings of train.py after them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", default="STORM-tiny", help="file of config_files/, without .yaml")
    parser.add_argument("--num-envs", type=int, default=1)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=240, help="environment steps of the run")
    parser.add_argument("--seed", type=int, default=0, help="of the run and of the kills")
    parser.add_argument("settings", nargs="*", help="further Section.Key=value of train.py")
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str]) -> int:
    """Run both, compare; the exit code."""
    options = parse(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as whole_folder, tempfile.TemporaryDirectory() as killed_folder:
        whole, killed = Path(whole_folder), Path(killed_folder)
        settings = settings_of(options)
        reference = Process(whole, settings, 0)
        reference.wait_until(reference.is_training)
        start = time.monotonic()
        reference.finish()
        seconds = time.monotonic() - start
        settings.append(f"JointTrainAgent.SaveEverySeconds={seconds / (4 * options.kills + 1):.3f}")
        done: Counter[str] = Counter()
        for number in range(options.kills):
            kind = KINDS[number % len(KINDS)]
            longest = seconds / max(1, options.kills)
            if Process(killed, settings, number).kill(kind, moments.uniform(0, longest)):
                done[kind] += 1
                print(f"{number + 1}: {kind}", flush=True)
        Process(killed, settings, options.kills).finish()
        found = differences(whole, killed)
    print(f"{sum(done.values())} kills: {dict(done)}")
    print("\n".join(found) if found else "identical")
    enough = 2 * sum(done.values()) >= options.kills  # a run that ended before its kill tells nothing
    if not enough:
        print("too few kills came in time to tell")
    return 0 if enough and not found else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
