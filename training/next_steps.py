"""What to do with a finished run."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from run_files.directory import RunDirectory
from utils import REPOSITORY


def next_steps(run: RunDirectory, on_video: bool = False) -> str:
    """Return where a finished run lies and the commands that come next, ready to be typed in this folder."""
    python, typed_in = _typed(Path(sys.executable)), os.environ.get("PWD")
    is_elsewhere = typed_in and Path(typed_in).resolve() != Path.cwd()  # a script was called that went here
    first = {f"cd {shlex.quote(str(Path.cwd()))}": "where it was trained"} if is_elsewhere else {}
    who = shlex.quote(f"-run_name={run.name}")
    score = f"{python} {_typed(REPOSITORY / 'eval.py')} {who}"
    commands = first | {f"{score} -video" if on_video else score: "scores it"}
    commands[f"{python} -m tensorboard.main --logdir {_typed(run.tensorboard)}"] = "shows its curves"
    if not on_video:
        commands[f"bash {_typed(REPOSITORY / 'play.sh')} {who}"] = "shows it and its dream"
        commands[f"{score} -record_video"] = "films its play"
    width = max(map(len, commands))
    lines = [f"  {command:{width}}  # {meaning}" for command, meaning in commands.items()]
    return "\n".join([f"finished: {run.outputs}", *lines])


def _typed(path: Path) -> str:
    """The path as a word of a command line, relative if it lies in this folder."""
    relative = os.path.relpath(path)
    return shlex.quote(str(path) if relative.startswith("..") else relative)
