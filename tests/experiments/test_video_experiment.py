"""experiments/video.py: what it reports of several seeds, and its figure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from experiments import video
from experiments.video import DATA, draw, record_clips, summarise


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

    monkeypatch.setattr(video, "finish", lambda *arguments: calls.append([*map(str, arguments)]))
    monkeypatch.setattr(video.record, "main", play)
    record_clips("Seaquest")
    record_clips("Seaquest")  # is there
    (trained, played) = calls
    assert trained[0] == "Seaquest-STORM-tiny-seed_0" and "ALE/Seaquest-v5" in trained[2]
    assert f"-run_name={trained[0]}" in played and "-steps=20000" in played
    assert [path.name for path in (tmp_path / "clips").iterdir()] == ["Seaquest"]
