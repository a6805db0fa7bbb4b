"""Recorded clips are what was played, and what training on video reads."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_runs import Result, call

from configuration.loading import apply_overrides
from configuration.schema import Config
from environments.digits import Digits
from evaluation import record
from evaluation.episodes import environment_spaces
from evaluation.policies import SHIPPED

SMALL = ("-steps=50", "BasicSettings.ImageSize=16", "-seed=3")
DIGITS = ("-random=Diagnostic/Digits-v0", "Environment.Arguments={episode_length: 20}")
TWINS = ("-random=Diagnostic/Twins-v0", "Environment.Arguments={episode_length: 20}")


def recorded(folder: Path, *arguments: str) -> Result:
    return call(record, folder, f"-out={folder / 'clips'}", *arguments)


def clips(folder: Path) -> list[dict[str, np.ndarray]]:
    return [dict(np.load(path)) for path in sorted((folder / "clips").iterdir())]


@pytest.mark.parametrize("which", [DIGITS, TWINS])
def test_random_play_is_recorded_episode_by_episode(tmp_path: Path, which: tuple[str, ...]) -> None:
    result = recorded(tmp_path, *which, *SMALL)
    assert result.code == 0, result.error
    assert "wrote 3 clips" in result.out
    found = clips(tmp_path)
    assert [clip["video"].shape for clip in found] == [(n, 16, 16, 3) for n in (20, 20, 10)]
    assert all(
        clip["video"].dtype == np.uint8 and len(clip["actions"]) == len(clip["video"]) for clip in found
    )
    assert len({clip["video"][0].tobytes() for clip in found}) == 3


def test_the_same_seed_records_the_same_and_another_seed_another(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        (tmp_path / name).mkdir()
        assert (
            recorded(tmp_path / name, *TWINS, "-steps=30", "BasicSettings.ImageSize=16", f"-seed={seed}").code
            == 0
        )
    first, same, other = (clips(tmp_path / name)[0] for name in "abc")
    assert all((first[key] == same[key]).all() for key in first)
    assert (first["video"] != other["video"]).any()


def test_actions_may_be_left_out(tmp_path: Path) -> None:
    assert recorded(tmp_path, *TWINS, *SMALL, "-without_actions").code == 0
    assert clips(tmp_path)[0].keys() == {"video"}


def test_an_agent_is_recorded_with_what_it_did(tmp_path: Path) -> None:
    agent = next(path for path in sorted(SHIPPED.iterdir()) if "catch" in path.name)
    result = recorded(tmp_path, f"-run_name={agent}", "-steps=18", "-device=cpu")
    assert result.code == 0, result.error
    for clip in clips(tmp_path):
        assert len(clip["video"]) == 9  # an episode of Catch
        assert set(clip["actions"].tolist()) <= {0, 1, 2}


def test_an_agent_does_not_play_with_other_actions_than_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = apply_overrides(Config(), ["BasicSettings.env_name=ALE/Pong-v5"])
    model = SimpleNamespace(spaces=environment_spaces(config))
    monkeypatch.setattr(
        record, "load_policy", lambda *_, **__: SimpleNamespace(config=config, world_model=model)
    )
    result = recorded(tmp_path, "-run_name=x", "Environment.FullActionSpace=True")
    assert result.code == 2
    assert "x: trained with" in result.error and "6 discrete actions, but here are" in result.error


def test_mistakes_are_named(tmp_path: Path) -> None:
    assert "one of -run_name" in recorded(tmp_path, "-steps=3").error
    assert "-steps=0" in recorded(tmp_path, *DIGITS, "-steps=0").error
    assert "-device: does not go with -random" in recorded(tmp_path, *DIGITS, "-device=cpu").error
    assert "not in colour" in recorded(tmp_path, "-random=Diagnostic/Reach-v0").error
    assert (
        "must be a setting of Environment" in recorded(tmp_path, "-run_name=x", "BasicSettings.Seed=1").error
    )
    assert "-device='gpu': must be" in recorded(tmp_path, "-run_name=STORM-catch", "-device=gpu").error
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "mine").touch()
    assert "there already" in recorded(tmp_path, *DIGITS).error


def test_digits_stay_inside_and_bounce_at_a_new_speed() -> None:
    env = Digits(image_size=32, episode_length=500)
    frame, _ = env.reset(seed=0)
    assert frame.shape == (32, 32, 3) and frame.max() == 255
    speeds, ended = [], False
    while not ended:
        before = env.velocities.copy()
        frame, reward, _, ended, _ = env.step(0)
        assert reward == 0 and env.places.min() >= 0 and env.places.max() <= 20
        turned = (env.velocities != before).any(1)
        at_edge = ((env.places == 0) | (env.places == 20)).any(1)
        assert (turned == at_edge).all()
        speeds += np.abs(env.velocities[turned]).flatten().tolist()
    assert env.elapsed == 500 and len(speeds) > 20
    assert 1 <= min(speeds) < max(speeds) <= 2
