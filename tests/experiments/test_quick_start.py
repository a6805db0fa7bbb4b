"""experiments/quick_start.py: what is its own of a grid; tests/experiments/test_atari_small.py runs one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from configuration.loading import load_config
from experiments import quick_start
from experiments.curves_figure import draw
from experiments.figures import draw_health
from experiments.training import interval
from utils import REPOSITORY

RECORDED = REPOSITORY / "results" / "quick_start" / "Seaquest.json"


@pytest.mark.parametrize("game", ["Catch", "Seaquest"])
def test_a_game_is_learned_with_presets_that_fit_it(game: str) -> None:
    for preset in quick_start.presets_of(game):
        config = load_config([f"BasicSettings.config_path={preset}"])
        assert config.JointTrainAgent.SampleMaxSteps <= 6_000
    assert (config.BasicSettings.env_name == quick_start.environment_of(game)) == (game == "Catch")


def test_random_play_is_what_runs_are_compared_with(monkeypatch: pytest.MonkeyPatch) -> None:
    random = quick_start.random_play("Catch")
    assert len(random) == quick_start.EPISODES and set(random) <= {-1.0, 1.0}
    assert quick_start.SUITE.levels("Catch") == {"random play": sum(random) / len(random)}
    runs = [{"evaluation_returns": returns} for returns in ([1.0] * 20, list(random), [0.9, 1.0, 0.9])]
    compared = json.loads(json.dumps(quick_start.compare("Catch", runs)))  # as it is recorded
    assert compared == {"random_returns": [*random], "runs_above_random": 2}


def test_an_interval_is_students() -> None:
    low, high = interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-4)  # 4.3027 / sqrt(3)
    assert interval([5.0]) == (5.0, 5.0)


def test_what_was_recorded_is_drawn(tmp_path: Path) -> None:
    draw([RECORDED], None, tmp_path / "curves.png")
    draw_health(json.loads(RECORDED.read_text()), tmp_path / "health.png")
    draw_health({"runs": [{"model": "STORM-tiny", "seed": 0, "health": {"step": []}}]}, tmp_path / "none.png")
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["curves.png", "health.png"]
    assert all(path.stat().st_size > 10_000 for path in tmp_path.glob("*.png"))
