"""experiments/quick_start.py: writes its record and both figures; no run is trained."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from experiments import quick_start

RECORDED = json.loads((quick_start.ROOT / "results" / "quick_start" / "Seaquest.json").read_text())


def recorded_run(preset: str, seed: int, options: Namespace, folder: Path) -> dict[str, Any]:
    return next(row for row in RECORDED["runs"] if (row["preset"], row["seed"]) == (preset, seed))


def test_what_was_measured_is_recorded_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curves = {
        quick_start.run_name("Seaquest", preset, 0): each for preset, each in RECORDED["health"].items()
    }
    monkeypatch.setattr(quick_start, "measure", recorded_run)
    monkeypatch.setattr(quick_start, "play_randomly", lambda game, seed, episodes: RECORDED["random"])
    monkeypatch.setattr(quick_start, "training_curves", lambda name, tags, folder: curves[name])
    assert quick_start.main(["--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "Seaquest.json").read_text())
    assert set(record) == set(RECORDED)
    assert all(record[key] == RECORDED[key] for key in ("game", "random", "runs", "health"))
    assert all(path.stat().st_size > 10_000 for path in tmp_path.glob("*.png"))
    assert len(list(tmp_path.glob("*.png"))) == 2
