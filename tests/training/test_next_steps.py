"""What a finished run says comes next."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from run_files.directory import RunDirectory
from training.next_steps import next_steps
from utils import REPOSITORY


def test_commands_can_be_typed_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    where, *lines = next_steps(RunDirectory("[a] b")).splitlines()
    assert where == "finished: outputs/[a] b"
    commands = [shlex.split(line, comments=True) for line in lines]
    score = [str(REPOSITORY / "eval.py"), "-run_name=[a] b"]
    assert commands[2][0] == str(REPOSITORY / "play.sh")
    assert [command[1:] for command in commands] == [
        score,
        ["-m", "tensorboard.main", "--logdir", "runs/[a] b"],
        ["-run_name=[a] b"],
        [*score, "-record_video"],
    ]
    monkeypatch.setenv("PATH", str(tmp_path))  # where no python is
    assert shlex.split(next_steps(RunDirectory("a")).splitlines()[1])[0] == sys.executable


def test_commands_are_short_where_the_environment_is_active(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    lines = next_steps(RunDirectory("Boxing-STORM-seed_0")).splitlines()
    assert lines[1].split("#")[0].strip() == "python eval.py -run_name=Boxing-STORM-seed_0"
    assert lines[3].split("#")[0].strip() == "./play.sh -run_name=Boxing-STORM-seed_0"
