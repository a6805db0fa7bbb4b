"""SLURM: which run an array job's task is, that signals reach it, and what is requeued; without SLURM."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
GRID = ["Boxing\nCarRacing-v3", "0,7", "STORM GITSTORM STORM-tiny"]
TRAIN = """\
import json, os, signal, sys, time
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
print(json.dumps([os.getpid(), sys.argv[1:]]), flush=True)
time.sleep(float(os.environ.get("TRAIN_SECONDS", 0)))
sys.exit(int(os.environ.get("TRAIN_CODE", 0)))
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The scripts, with a train.py that tells its process and arguments, and SLURM's two commands."""
    for name in ("train.sh", "setup.sh", "requirements.txt"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    for name in ("config_files", "examples", "results"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    (tmp_path / "train.py").write_text(TRAIN)
    for name, text in (("srun", 'exec "$@"'), ("scontrol", 'echo "$@" >>"$SLURM_SUBMIT_DIR/scontrol.log"')):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    return tmp_path


def start(folder: Path, command: list[str], **variables: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    environment |= {"STORM_PYTHON": sys.executable, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env={**environment, **variables}, **pipes)


def run_task(folder: Path, task: str, *arguments: str) -> tuple[int, str, str]:
    command = ["bash", str(folder / "train.sh"), "--array", *arguments]
    process = start(folder, command, **({"SLURM_ARRAY_TASK_ID": task} if task else {}))
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def cell(output: str) -> tuple[str, str, str]:
    """Environment, seed and config that train.py was given."""
    settings = dict(setting.split("=", 1) for setting in json.loads(output)[1])
    keys = ("BasicSettings.env_name", "BasicSettings.Seed", "BasicSettings.config_path")
    return tuple(settings[key] for key in keys)


def test_the_tasks_are_the_grid_each_run_once(copy: Path) -> None:
    from sweeping.options import parse_options
    from sweeping.plan import environment_id

    texts = (",".join(text.split()) for text in GRID)
    words = [f"{name}={text}" for name, text in zip(("games", "seeds", "configs"), texts, strict=True)]
    grid = parse_options(words).grid()
    expected = [
        (environment_id(game), str(seed), f"config_files/{config}.yaml") for game, seed, config in grid
    ]
    assert len(set(expected)) == 12
    assert [cell(run_task(copy, str(task), *GRID)[1]) for task in range(12)] == expected


def test_settings_are_passed_on_and_numbers_are_decimal(copy: Path) -> None:
    code, output, errors = run_task(copy, "09", *GRID, "Models.Agent.Gamma=0.9")
    assert code == 0 and "task 09 of 12" in errors
    assert cell(output) == ("CarRacing-v3", "7", "config_files/STORM.yaml")
    assert json.loads(output)[1][-1] == "Models.Agent.Gamma=0.9"


def test_atari100k_is_its_26_games(copy: Path) -> None:
    last = run_task(copy, "129", "atari100k", "0 1 2 3 4", "STORM")
    assert cell(last[1]) == ("ALE/UpNDown-v5", "4", "config_files/STORM.yaml")
    assert run_task(copy, "130", "atari100k", "0 1 2 3 4", "STORM")[0] == 2


@pytest.mark.parametrize(
    ("task", "arguments", "words"),
    [
        ("12", GRID, ["SLURM_ARRAY_TASK_ID='12'", "--array=0-11"]),
        ("-1", GRID, ["SLURM_ARRAY_TASK_ID='-1'"]),
        ("one", GRID, ["SLURM_ARRAY_TASK_ID='one'"]),
        ("", GRID, ["SLURM_ARRAY_TASK_ID=''", "--array=0-11"]),
        ("0", ["Boxing", "0"], ["usage", "--array"]),
        ("0", ["Boxing", " ", "STORM"], ["at least one"]),
        ("0", ["Boxing", "one", "STORM"], ["seed 'one'"]),
        ("0", ["Boxing", "0", "STROM"], ["config 'STROM'"]),
        ("0", ["Boxing", "0", "STORM", "more"], ["'more'", "Section.Key=value"]),
    ],
)
def test_wrong_tasks_and_grids_are_said_in_one_line(
    copy: Path, task: str, arguments: list[str], words: list[str]
) -> None:
    code, output, errors = run_task(copy, task, *arguments)
    complaint = errors.splitlines()[-1]
    assert code == 2 and output == "" and complaint.startswith("error: ")
    assert all(word in complaint for word in words)


def test_the_script_becomes_the_training_so_that_signals_reach_it(copy: Path) -> None:
    command = ["bash", str(copy / "train.sh"), "--array", *GRID]
    process = start(copy, command, SLURM_ARRAY_TASK_ID="0", TRAIN_SECONDS="300")
    assert json.loads(process.stdout.readline())[0] == process.pid
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=60) == 75
    process.communicate()


def submit(copy: Path, task: str = "3", **variables: str) -> subprocess.Popen[str]:
    """The example as SLURM runs it: a copy of the file, from the folder where sbatch was typed."""
    script = copy / "spool" / "slurm_script"
    script.parent.mkdir(exist_ok=True)
    shutil.copy(copy / "examples" / "slurm_array.sh", script)
    numbers = {"SLURM_ARRAY_JOB_ID": "42", "SLURM_ARRAY_TASK_ID": task, "SLURM_SUBMIT_DIR": str(copy)}
    return start(copy, ["bash", str(script)], **numbers, **variables)


def test_a_task_out_of_time_is_saved_and_requeued(copy: Path) -> None:
    job = submit(copy, TRAIN_SECONDS="300")
    training, settings = json.loads(job.stdout.readline())
    assert training != job.pid and "BasicSettings.env_name=ALE/Amidar-v5" in settings
    os.kill(training, signal.SIGUSR1)  # as --signal does for the processes that srun started
    job.communicate(timeout=60)
    assert job.returncode == 75
    assert (copy / "scontrol.log").read_text() == "requeue 42_3\n"


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_task_that_ended_is_not_requeued(copy: Path, code: int) -> None:
    job = submit(copy, TRAIN_CODE=str(code))
    job.communicate(timeout=60)
    assert job.returncode == code and not (copy / "scontrol.log").exists()


def test_the_example_asks_for_as_many_tasks_as_its_grid_has(copy: Path) -> None:
    text = (copy / "examples" / "slurm_array.sh").read_text()
    last = int(text.split("#SBATCH --array=0-")[1].split("%")[0])
    codes = []
    for task in (last, last + 1):
        job = submit(copy, str(task))
        job.communicate(timeout=60)
        codes.append(job.returncode)
    assert codes == [0, 2]
    for option in ("--requeue", "--signal=USR1@", "--open-mode=append"):
        assert f"#SBATCH {option}" in text
