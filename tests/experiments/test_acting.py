"""experiments/acting.py: the sides differ in how they act alone, and are compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiments import acting, grid
from utils import UserError


def test_all_sides_are_run_recorded_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trained: list[list[str]] = []
    returns = iter(([1.0, 3.0], [0.0, 0.0], [2.0, 2.0], [4.0, 4.0], [1.0, 1.0], [4.0, 5.0]))
    known = {"trained_steps": 3_000, "training_minutes": 3.0, "commit": "abc"}
    monkeypatch.setattr(grid, "train", lambda name, config, settings, *_: trained.append(settings))
    monkeypatch.setattr(grid, "training_returns", lambda *_: [(1_000, -1.0), (2_900, 1.0)])
    monkeypatch.setattr(grid, "saved_steps", lambda *_: [3_000])
    played: list[str] = []

    def evaluate(name: str, step: int, setting: str = "", **_: Any) -> list[float]:
        if not setting:
            return next(returns)
        played.append(setting.removeprefix("JointTrainAgent."))
        return [5.0] if setting.endswith("False") else [1.0]

    monkeypatch.setattr(grid, "evaluate", evaluate)
    monkeypatch.setattr(grid, "run_facts", lambda *_: known)
    monkeypatch.setattr(grid, "training_curves", lambda *_: {"step": []})
    arguments = ["--tasks", "Diagnostic/Catch-v0", "--models", "STORM-catch", "--at-a-time", "1"]
    assert acting.main([*arguments, "--seeds", "0", "1", "--out", "records"]) == 0
    seeing, blind, storing, *_ = (set(settings) for settings in trained)
    assert blind - seeing == {"JointTrainAgent.ActBlindly=True"} and not seeing - blind
    assert storing - seeing == {"JointTrainAgent.UpdateAfterStoring=True"} and not seeing - storing
    record: dict[str, Any] = json.loads(Path("records/Diagnostic_Catch-v0.json").read_text())
    assert (
        played == ["ActBlindly=True", "ActBlindly=False", "ActBlindly=True"] * 2
    )  # not as they were trained
    of_ways = record["sides"]["STORM-catch"]
    assert [of_ways[way]["blind"]["seeds"] for way in ("seeing", "blind")] == [[5.0, 5.0], [0.0, 1.0]]
    assert [of_ways[way]["seeing"]["seeds"] for way in ("seeing", "blind")] == [[2.0, 4.0], [1.0, 1.0]]
    at_play = record["at_play"]["STORM-catch"]
    assert at_play["agents"] == 6 and at_play["seeing_above"] == pytest.approx((1 + 5 + 1 + 3 + 4 + 3.5) / 6)
    assert at_play["interval"][0] < at_play["seeing_above"] < at_play["interval"][1]
    found = of_ways["as trained"]
    assert found["seeing"] == {"mean": 3.0, "seeds": [2.0, 4.0]}
    for side, scores, above in (("blind", [0.0, 1.0], 2.5), ("storing first", [2.0, 4.5], -0.25)):
        low, high = found[side]["interval"]
        assert found[side]["seeds"] == scores and found[side]["seeing_above"] == above
        assert low < above < high
    sides = [run["model"].removeprefix("STORM-catch ") for run in record["runs"]]
    assert sides == ["blind"] * 2 + ["seeing"] * 2 + ["storing first"] * 2
    assert Path("records/Diagnostic_Catch-v0.png").stat().st_size > 10_000


def test_there_are_eight_seeds_a_side_of_a_diagnostic_and_a_game() -> None:
    runs = grid.cells(acting.SUITE, grid.grid_parser(acting.SUITE, "").parse_args([]))
    for task, model in (("WindyCatch", "STORM-catch"), ("Seaquest", "STORM-tiny")):
        for side in acting.SIDES:
            assert sum((run.task, run.model, run.variant) == (task, model, side) for run in runs) == 8


def test_without_the_first_side_nothing_is_compared() -> None:
    runs = [
        {"model": "STORM-tiny blind", "evaluation_returns": [score], "other_way_returns": [0.0]}
        for score in (1.0, 2.0)
    ]
    found = acting.compare("Seaquest", runs)
    assert found["sides"]["STORM-tiny"]["as trained"] == {"blind": {"mean": 1.5, "seeds": [1.0, 2.0]}}


def test_seeds_of_two_models_are_not_one_sample() -> None:
    scores = {"STORM-tiny": 0.0, "GITSTORM-tiny": 100.0}
    runs = [
        {
            "model": f"{model} {side}",
            "evaluation_returns": [score + seed + (side == "seeing")],
            "other_way_returns": [0.0],
        }
        for model, score in scores.items()
        for side in ("seeing", "blind")
        for seed in (0, 1)
    ]
    sides = acting.compare("Seaquest", runs)["sides"]
    assert [sides[model]["as trained"]["blind"]["seeing_above"] for model in scores] == [1.0, 1.0]
    assert all(len(sides[model]["as trained"]["blind"]["seeds"]) == 2 for model in scores)


def test_a_variant_is_refused_where_there_are_some() -> None:
    with pytest.raises(UserError, match="--variant slow: acting has variants of its own"):
        acting.main(["--variant", "slow", "Models.Agent.Gamma=0.9"])
