"""What the tests of sweeps share: small grids, and waiting."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from sweeping.options import parse_options
from sweeping.runs import SweepRun, plan_runs

REPOSITORY = Path(__file__).resolve().parents[1]
CATCH = "games=Diagnostic/Catch-v0"
WANTED = 320


def plan(folder: Path, *words: str) -> list[SweepRun]:
    """Return the runs of Catch under `folder`, with these words added to the command."""
    return plan_runs(parse_options([CATCH, "configs=STORM-catch", f"storage={folder}", *words]))


def write_status(run: SweepRun, status: str, step: int) -> None:
    """Write a run.json, and the config."""
    run.directory.outputs.mkdir(parents=True, exist_ok=True)
    run.directory.save_config(run.config)
    run.directory.status_file.write_text(json.dumps({"status": status, "finished_step": step}))


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Return once the condition holds; fail after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
