"""experiments/video.py: what it reports of several seeds, and its figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from evaluation.video_prediction import Judgement
from experiments import video
from experiments.video import DATA, draw, record_clips, summarise
from utils import UserError


def judgement(mse: float) -> dict:
    found = {"mse": mse, "ssim": 0.5, "prior_perplexity": 2.0, "seconds": 1.5, "by_horizon": {"mse": [mse]}}
    return {"predictors": {"STORM": found, "last frame": {"mse": 1.0, "ssim": 0.1, "seconds": 0.0}}}


@pytest.mark.parametrize("data", DATA)
def test_seeds_are_averaged_with_their_interval(data: str) -> None:
    summary = summarise([judgement(mse) for mse in (1.0, 2.0, 6.0)])
    low, high = stats.t.interval(0.95, 2, 3.0, stats.sem([1.0, 2.0, 6.0]))
    assert summary["STORM"]["mse"]["mean"] == 3
    assert summary["STORM"]["mse"]["half_interval"] == pytest.approx((high - low) / 2)
    assert "by_horizon" not in summary["STORM"] and "prior_perplexity" not in summary["last frame"]
    assert len(draw(summary, data).axes) == (5 if data == "twins" else 4)
    assert "half_interval" not in summarise([judgement(1.0)])["STORM"]["mse"]
    assert np.isfinite(summary["last frame"]["mse"]["half_interval"])
    assert summary["last frame"]["mse"]["above_storm"] == pytest.approx((-2 - (high - 3), -2 + (high - 3)))
    assert "above_storm" not in summary["STORM"]["mse"]  # by the same windows, so paired: 1 less 1, 2 and 6


def test_a_game_is_recorded_by_an_agent_that_is_trained_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips/Seaquest.unfinished").mkdir(parents=True)
    (tmp_path / "clips/Seaquest.unfinished/00000.npz").touch()  # of a recording that was interrupted
    calls: list[list[str]] = []

    def play(arguments: list[str]) -> None:
        calls.append(arguments)
        folder = Path(next(each for each in arguments if each.startswith("-out=")).removeprefix("-out="))
        assert not folder.exists()
        folder.mkdir()

    monkeypatch.setattr(video.training, "train", lambda *arguments: calls.append([*map(str, arguments)]))
    monkeypatch.setattr(video.record, "main", play)
    record_clips("Seaquest")
    record_clips("Seaquest")  # is there
    (trained, played) = calls
    assert trained[0] == "Seaquest-STORM-tiny-seed_0" and "ALE/Seaquest-v5" in trained[2]
    assert f"-run_name={trained[0]}" in played and "-steps=20000" in played
    assert [path.name for path in (tmp_path / "clips").iterdir()] == ["Seaquest"]


@pytest.mark.parametrize(("models", "has_plans"), [(["STORM"], False), (["STORM", "masked"], True)])
def test_plans_are_asked_for_where_a_model_has_any(
    models: list[str], has_plans: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def judge_runs(target: None, options: Any, measures: list[Any]) -> tuple[dict[str, Any], None]:
        asked.append(options.plans)
        return {"predictors": {}}, None

    monkeypatch.setattr(video, "read_target", lambda options: None)
    monkeypatch.setattr(video, "judge_runs", judge_runs)
    video.judge("digits", models, 0)
    assert bool(asked[0]) == has_plans


def test_no_updates_are_refused_before_anything_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "record_clips", lambda data: pytest.fail("clips are recorded"))
    with pytest.raises(UserError, match=r"--steps: JointTrainAgent.SampleMaxSteps=0"):
        video.main(["--steps", "0"])


def test_seeds_are_trained_judged_and_recorded_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trained: list[tuple[str, str, int]] = []
    frames = np.zeros((1, 2, 8, 8, 3), np.uint8)
    found = Judgement({}, 1, np.zeros((1, 3, 8, 8, 3), np.uint8), {"a": frames, "b": frames})

    def train(data: str, model: str, seed: int, steps: int) -> dict[str, str]:
        trained.append((data, model, seed))
        return {"model": model}

    monkeypatch.setattr(video, "record_clips", lambda data: None)
    monkeypatch.setattr(video, "train", train)
    monkeypatch.setattr(
        video, "judge", lambda data, models, seed: (judgement(seed + 1.0) | {"context": 1}, found)
    )
    video.main(
        ["--data", "digits", "--models", "STORM", "STORM", "--seeds", "0", "2", "0", "--out", "records"]
    )
    assert trained == [("digits", "STORM", 0), ("digits", "STORM", 2)]
    record = json.loads(Path("records/digits.json").read_text())
    assert record["summary"]["STORM"]["mse"]["mean"] == 2 and len(record["judgements"]) == 2
    assert record["command"].startswith("python -m experiments.video --data digits")
    for name in ("digits", "digits_strip"):
        assert Path(f"records/{name}.png").stat().st_size > 1_000
