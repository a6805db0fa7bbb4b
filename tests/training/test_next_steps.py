"""What a run says of itself at its start, and of what comes next at its end."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import train
from compute.execution import Execution
from configuration.schema import BasicSettings, Config
from run_files.directory import RunDirectory
from training.next_steps import next_steps
from utils import REPOSITORY


def announced(compile_when: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a run on a CPU says of itself."""
    execution = Execution(BasicSettings(Precision="float32", Compile=compile_when), torch.device("cpu"))
    learner = SimpleNamespace(world_model=torch.nn.Linear(4, 4))
    train.announce(SimpleNamespace(config=Config(), notes=[], learner=learner, execution=execution))
    return capsys.readouterr().err


@pytest.mark.parametrize("compile_when", ["auto", "always", "never"])
def test_that_learning_waits_for_a_compiler_is_said(
    capsys: pytest.CaptureFixture[str], compile_when: str
) -> None:
    waits = "kernels to be compiled" in announced(compile_when, capsys)
    assert waits == (compile_when == "always")


def test_a_cpu_is_advised_configs_that_there_are_for_every_kind_of_task(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "MANY_PARAMETERS", 5)
    named = re.findall(r"STORM-\w+", announced("never", capsys))
    assert named == ["STORM-tiny", "STORM-control", "STORM-video"]
    for name in [*named, *(f"GIT{name}" for name in named)]:
        assert (REPOSITORY / "config_files" / f"{name}.yaml").is_file()


def test_commands_can_be_typed_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PWD", str(tmp_path))
    where, *lines = next_steps(RunDirectory("[a] b")).splitlines()
    assert where == "finished: outputs/[a] b"
    commands = [shlex.split(line, comments=True) for line in lines]
    score = [str(REPOSITORY / "eval.py"), "-run_name=[a] b"]
    assert commands[-2][0] == "bash"
    assert [command[1:] for command in commands[-4:]] == [
        score,
        ["-m", "tensorboard.main", "--logdir", "runs/[a] b"],
        [str(REPOSITORY / "play.sh"), "-run_name=[a] b"],
        [*score, "-record_video"],
    ]


def test_commands_begin_with_the_interpreter_and_where_to_type_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sys, "executable", str(REPOSITORY / "a venv" / "python"))
    score = "'a venv/python' eval.py -run_name=Boxing-STORM-seed_0"

    def first_commands() -> list[str]:
        lines = next_steps(RunDirectory("Boxing-STORM-seed_0")).splitlines()
        return [line.split("#")[0].strip() for line in lines[1:3]]

    monkeypatch.setenv("PWD", str(REPOSITORY))
    assert first_commands()[0] == score
    monkeypatch.setenv("PWD", str(tmp_path))  # of the shell that called a script
    assert first_commands() == [f"cd {REPOSITORY}", score]
