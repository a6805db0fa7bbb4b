"""The imagination videos of runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from reporting.runs import Run

LARGEST_VIDEO = 8_000_000  # bytes; a larger one would make the page unwieldy


def newest_videos(runs: Sequence[Run]) -> dict[str, bytes]:
    """Return caption -> GIF of the newest video of one run per game and method that left any."""
    shown: dict[tuple[str, str], tuple[str, bytes]] = {}
    for run in sorted(runs, key=lambda run: (run.game, run.label, run.seed)):
        path = max((run.folder / "videos").glob("*.gif"), key=_step_of, default=None)
        content = _read(path) if path and (run.game, run.label) not in shown else b""
        if content:
            caption = f"{run.game}, {run.label}, seed {run.seed}, step {_step_of(path):,}"
            shown[run.game, run.label] = caption, content
    return dict(shown.values())


def _read(path: Path) -> bytes:
    """The content of a GIF; nothing if it is none, or too large."""
    try:
        content = path.read_bytes()
    except OSError:
        return b""
    return content if content.startswith(b"GIF8") and len(content) <= LARGEST_VIDEO else b""


def _step_of(path: Path) -> int:
    return int((re.findall(r"\d+", path.stem) or [0])[-1])
