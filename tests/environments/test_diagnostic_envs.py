"""Catch is bsuite's Catch, and Twins tells consistent pictures from others."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from environments import diagnostic as diagnostic_envs
from environments.diagnostic import BALL, PADDLE, is_consistent, parts_of, twins_pictures


def column_of(picture: np.ndarray, colour: tuple[int, int, int]) -> float:
    """Horizontal centre of a colour, as a share of the width."""
    columns = np.flatnonzero((picture == colour).all(-1).any(0))
    return float(columns.mean() + 0.5) / picture.shape[1]


def follow(picture: np.ndarray) -> int:
    """The action that moves the paddle towards the ball."""
    aim = column_of(picture, BALL) - column_of(picture, PADDLE)
    return 1 + int(np.sign(aim) * (abs(aim) > 0.05))


def play_catch(env: gymnasium.Env, policy: str, episodes: int) -> list[float]:
    """Returns of episodes, by a policy that sees the pixels only."""
    rng, returns = np.random.default_rng(0), []
    picture, _ = env.reset(seed=0)
    for _ in range(episodes):
        rewards, ended, seen = [], False, {"blind": picture}
        while not ended:
            seen |= {"best": picture}
            action = rng.integers(3) if policy == "random" else follow(seen[policy])
            seen |= {"blind": picture}
            picture, reward, ended, _, _ = env.step(action)
            rewards.append(reward)
        assert len(rewards) == 9 and not any(rewards[:-1]) and abs(rewards[-1]) == 1
        returns.append(sum(rewards))
        picture, _ = env.reset()
    return returns


@pytest.mark.parametrize("image_size", [10, 64, 100])
def test_who_follows_the_ball_catches_it(image_size: int) -> None:
    env = gymnasium.make("Diagnostic/Catch-v0", image_size=image_size)
    assert env.observation_space.shape == (image_size, image_size, 3)
    assert play_catch(env, "best", 30) == [1.0] * 30


def test_random_play_catches_one_in_five() -> None:
    returns = play_catch(gymnasium.make("Diagnostic/Catch-v0"), "random", 1_500)
    assert np.mean(returns) == pytest.approx(-0.6, abs=0.07)  # a standard error is 0.02


def test_in_the_wind_one_must_see_the_present_frame() -> None:
    env = gymnasium.make("Diagnostic/WindyCatch-v0")
    assert play_catch(env, "best", 100) == [1.0] * 100
    assert np.mean(play_catch(env, "blind", 500)) < 0.3  # who acts on the frame before


@pytest.mark.parametrize(
    "name",
    [
        "Diagnostic/Catch-v0",
        "Diagnostic/WindyCatch-v0",
        "Diagnostic/Reach-v0",
        "Diagnostic/Twins-v0",
        "Diagnostic/Digits-v0",
    ],
)
def test_gymnasiums_own_checker_is_content(name: str) -> None:
    check_env(gymnasium.make(name).unwrapped, skip_render_check=True)


def point(observation: np.ndarray, reach: float) -> np.ndarray:
    """The action that moves the hand towards the target."""
    return np.clip((observation[2:] - observation[:2]) / reach, -1, 1)


@pytest.mark.parametrize("steps", [1, 16])
def test_who_points_at_the_target_reaches_it(steps: int) -> None:
    env = gymnasium.make("Diagnostic/Reach-v0", steps=steps, render_mode="rgb_array")
    rng, returns = np.random.default_rng(0), {"best": [], "random": []}
    for policy in returns:
        for episode in range(200):
            observation, _ = env.reset(seed=episode)
            rewards, ends = [], []
            for _ in range(steps):
                action = point(observation, min(1, 4 / steps)) if policy == "best" else rng.uniform(-1, 1, 2)
                observation, reward, terminated, truncated, _ = env.step(action)
                rewards.append(reward)
                ends.append((terminated, truncated))
            assert ends == [(False, False)] * (steps - 1) + [(steps == 1, steps > 1)]
            assert policy == "random" or rewards[-1] == pytest.approx(1, abs=1e-6)
            returns[policy].append(sum(rewards))
    assert np.mean(returns["best"]) > 0.85 * steps and np.mean(returns["random"]) < 0.2 * steps


def test_reach_draws_hand_and_target_where_they_are() -> None:
    env = gymnasium.make("Diagnostic/Reach-v0", steps=1, image_size=50, render_mode="rgb_array")
    for seed in range(5):
        target = env.reset(seed=seed)[0][2:]
        picture = env.render().astype(int)
        shown = (picture[..., 0] > 200) & (picture[..., 1] > 150)  # the target's colour but its soft edge
        rows, columns = np.nonzero(shown)
        centre = np.array([columns.mean(), rows.mean()]) * 2 / 49 - 1
        assert np.abs(centre - target).max() < 0.12 and (picture == PADDLE).all(-1).any()


def test_twins_draws_every_picture_equally_often_and_independently() -> None:
    env = gymnasium.make("Diagnostic/Twins-v0", image_size=16, episode_length=10**6)
    env.reset(seed=0)
    drawn = np.array([env.step(step % 2)[-1]["picture"] for step in range(16_000)])
    assert np.abs(np.bincount(drawn, minlength=16) - 1_000).max() < 150  # five standard deviations
    pairs = np.bincount(16 * drawn[:-1] + drawn[1:], minlength=256)
    assert pairs.min() > 15 and pairs.max() < 120  # 62.5 expected


def test_twins_episodes_have_a_fixed_length_and_no_reward() -> None:
    env = gymnasium.make("Diagnostic/Twins-v0", episode_length=5)
    env.reset(seed=0)
    steps = [env.step(0)[1:4] for _ in range(5)]
    assert steps == [(0.0, False, False)] * 4 + [(0.0, False, True)]


@pytest.mark.parametrize("image_size", [64, 32])
def test_parts_are_recognised_through_noise(image_size: int) -> None:
    pictures = twins_pictures(image_size)
    noisy = pictures + np.random.default_rng(0).normal(0, 20, (3, *pictures.shape))
    expected = np.broadcast_to(np.arange(16)[:, None, None], (3, 16, 4, 4))
    np.testing.assert_array_equal(parts_of(noisy), expected)
    assert is_consistent(noisy).all()


def test_independent_parts_one_odd_part_and_blends_are_inconsistent() -> None:
    pictures = twins_pictures()
    cells = pictures.reshape(16, 4, 16, 4, 16, 3)
    rng = np.random.default_rng(0)
    mixed = np.empty((50, 4, 16, 4, 16, 3), np.uint8)
    for row in range(4):
        for column in range(4):
            mixed[:, row, :, column] = cells[rng.integers(16, size=50), row, :, column]
    assert not is_consistent(mixed.reshape(50, 64, 64, 3)).any()
    odd = pictures[3].copy()
    odd[48:, 48:] = pictures[4][48:, 48:]
    assert not is_consistent(odd)
    assert (parts_of(odd) == 3).sum() == 15 and parts_of(odd)[3, 3] == 4
    blend = pictures.mean(axis=0)
    assert (parts_of(blend) == -1).all() and not is_consistent(blend)
    halves = (pictures[0].astype(float) + pictures[1]) / 2
    assert not is_consistent(halves)


def test_impossible_sizes_are_refused() -> None:
    for image_size in (40, 0):
        with pytest.raises(ValueError, match="must be a multiple of 16"):
            diagnostic_envs.Twins(image_size)
    with pytest.raises(ValueError, match="at least 10"):
        diagnostic_envs.Catch(image_size=9)
