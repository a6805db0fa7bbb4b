"""How many CPU threads are used: one for small networks, unless a number is given or recorded."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from compute.threads import use_threads
from configuration.loading import load_config

REPOSITORY = Path(__file__).resolve().parents[2]
CPU = "BasicSettings.device=cpu"


@pytest.fixture(autouse=True)
def _three_cores() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("preset", "count"), [("STORM-tiny", 1), ("GITSTORM-tiny", 1), ("STORM", 3), ("GITSTORM", 3)]
)
def test_small_networks_leave_the_other_cores_to_other_runs(preset: str, count: int) -> None:
    config = load_config([f"BasicSettings.config_path={preset}", CPU])
    images = config.JointTrainAgent.BatchSize * config.JointTrainAgent.BatchLength
    (line,) = use_threads(config, images)
    assert torch.get_num_threads() == count and f"CPU threads: {count}, " in line
    (line,) = use_threads(config, 5) if count == 3 else ("CPU threads: 1",)  # acting in five environments
    assert torch.get_num_threads() == 1 and "CPU threads: 1" in line
    assert use_threads(config, images) == []  # nothing to choose from


def test_a_given_number_rules_and_a_resumed_run_keeps_its_own() -> None:
    config = load_config([CPU, "BasicSettings.NumThreads=2"])
    assert use_threads(config, 8, recorded=4) == [] and torch.get_num_threads() == 2
    config.BasicSettings.NumThreads = 0
    assert use_threads(config, 8, recorded=4) == [] and torch.get_num_threads() == 4


@pytest.mark.slow
def test_two_runs_side_by_side_do_not_hold_each_other_up(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "train.py"), "BasicSettings.config_path=STORM-tiny", CPU]
    command += ["BasicSettings.env_name=Diagnostic/Catch-v0", "BasicSettings.silent=true"]
    command += ["JointTrainAgent.BufferWarmUp=100", "JointTrainAgent.SampleMaxSteps=400"]
    variables = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}

    def seconds(*seeds: int) -> float:
        start = time.monotonic()
        more = [[f"BasicSettings.Seed={seed}"] for seed in seeds]
        runs = [subprocess.Popen([*command, *each], cwd=tmp_path, env=variables) for each in more]
        assert [run.wait() for run in runs] == [0] * len(runs)
        return time.monotonic() - start

    alone = seconds(0)
    assert seconds(1, 2) < 3 * alone  # each has a core of its own, or half of one


@pytest.mark.parametrize("command", ["train", "eval", "benchmark"])
def test_threads_are_told_to_sleep_before_pytorch_is_loaded(command: str) -> None:
    program = f"""
import os, sys
class Finder:
    def find_spec(name, path, target=None):
        if name == "torch":
            sys.exit(7 if os.environ.get("OMP_WAIT_POLICY") == "PASSIVE" else 1)
sys.meta_path.insert(0, Finder)
import {command}"""
    variables = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    assert subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, env=variables).returncode == 7
