"""Every command that README and docs/ print can be typed: its files are there and its options are taken."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import kill_and_compare
import pytest

from benchmark import make_parser
from configuration.loading import load_config
from evaluation.options import parse_options as parse_evaluation
from evaluation.record import parse_options as parse_recording
from experiments import joint_prior
from experiments.grid import grid_parser
from play import parse_options as parse_play
from sweeping.options import parse_options as parse_sweep
from sweeping.runs import plan_runs

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
INLINE = re.compile(r"`((?:python|\./)[^`]*)`", re.DOTALL)


def commands() -> Iterator[tuple[str, str]]:
    """(file, command) of every Bash block and of what stands inline."""
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        shell = "".join(block for language, block in BLOCK.findall(text) if language == "bash")
        lines = shell.replace("\\\n", " ").splitlines()
        inline = BLOCK.sub("", text).replace("\n", " ")
        yield from ((path.name, command) for command in [*lines, *INLINE.findall(inline)] if command.strip())


def check(words: list[str]) -> None:
    """Have the command's own code read its arguments."""
    program, arguments = words[0], words[1:]
    if any("dm_control/" in word for word in arguments):
        pytest.importorskip("dm_control")
    if arguments == ["--help"]:
        return  # tests of the commands hold that it prints
    if program == "train.py":
        load_config(arguments)
    elif program == "eval.py":
        parse_evaluation(arguments)
    elif program == "evaluation/record.py":
        parse_recording(arguments)
    elif program in ("play.py", "./play.sh"):
        parse_play(arguments)
    elif program == "sweep.py" or program == "./sweep.sh":
        plan_runs(parse_sweep(arguments or ["games=Boxing"]))
    elif program == "./train.sh":
        game, seed, config, *settings = arguments
        plan_runs(parse_sweep([f"games={game}", f"seeds={seed}", f"configs={config}", *settings]))
    elif program == "benchmark.py":
        load_config(make_parser().parse_args(arguments).overrides)
    elif program == "tests/kill_and_compare.py":
        kill_and_compare.parse(arguments)
    elif program == "experiments/joint_prior.py":
        joint_prior.read_options(arguments)
    elif program.startswith("experiments/"):
        suite = getattr(import_module(program[:-3].replace("/", ".")), "SUITE", None)
        if suite is not None:
            grid_parser(suite, "").parse_args(arguments)


@pytest.mark.parametrize(("origin", "command"), sorted(set(commands())))
def test_a_documented_command_can_be_typed(
    origin: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    words = [word for word in shlex.split(command, comments=True) if not re.match("[A-Z]+=", word)]
    if words[0] == "python":
        words.pop(0)
    if words[0] == "-m":
        words[:2] = [f"{words[1].replace('.', '/')}.py"]
    if words[0] in ("source", "tensorboard", "pip", "python3"):
        words = words[words.index("-r") + 1 :] if "-r" in words else []
    assert all((ROOT / word).is_file() for word in words[:1])
    files = [
        word for word in words if re.fullmatch(r"(tests|results|config_files|experiments)/[\w./-]+", word)
    ]
    assert not [word for word in files if not (ROOT / word).exists()]
    if words and "my_" not in command:  # those of docs/extending.md are run by tests of their own
        check(words)
