"""Observations, rewards and life losses are right, and a restored environment goes on bit for bit."""

from __future__ import annotations

import copy
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ale_py
import cv2
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers import AtariPreprocessing

from configuration.schema import EnvironmentConfig
from env_wrapper import StepResult, VectorEnvironment
from environments.single import ignored_settings
from utils import Interrupt, UserError, raise_interrupt

BREAKOUT = "ALE/Breakout-v5"  # five lives, and random play loses them all in some 200 steps
DEFAULTS = EnvironmentConfig()
Make = Callable[..., VectorEnvironment]


@pytest.fixture
def make() -> Iterable[Make]:
    """VectorEnvironment with defaults; closes what it made."""
    made: list[VectorEnvironment] = []

    def build(name: str = BREAKOUT, num_envs: int = 1, seed: int = 3, **settings: Any) -> VectorEnvironment:
        quirks = settings.pop("release_quirks", False)
        size = settings.pop("image_size", 64)
        made.append(VectorEnvironment(name, replace(DEFAULTS, **settings), size, num_envs, seed, quirks))
        return made[-1]

    yield build
    for environment in made:
        environment.close()


def play(environment: VectorEnvironment, actions: Iterable[int] | np.ndarray) -> list[StepResult]:
    """One step per action, of every environment."""
    results = []
    for action in actions:
        environment.start_step(np.broadcast_to(action, environment.num_envs))
        results.append(environment.finish_step())
    return results


def random_actions(count: int, num_actions: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(num_actions, size=count)


def assert_same(ours: StepResult, theirs: StepResult) -> None:
    for name, value in vars(ours).items():
        np.testing.assert_array_equal(value, getattr(theirs, name), err_msg=name)


# The same numbers as other people's code.


@pytest.mark.parametrize("name", [BREAKOUT, "ALE/MsPacman-v5"])
def test_equal_to_gymnasiums_preprocessing_with_sticky_actions(name: str, make: Make) -> None:
    ours = make(name)
    inner = gymnasium.make(name, frameskip=1, repeat_action_probability=0.25)
    theirs = AtariPreprocessing(inner, noop_max=0, screen_size=64, grayscale_obs=False)
    picture, info = theirs.reset(seed=3)
    np.testing.assert_array_equal(ours.reset()[0], picture)
    ends = losses = 0
    score = 0.0
    for result, action in ((play(ours, [a])[0], a) for a in random_actions(500, ours.spaces.action.size)):
        lives = info["lives"]
        picture, reward, terminated, truncated, info = theirs.step(action)
        score += reward
        assert result.reward[0] == reward and result.episode_end[0] == (terminated or truncated)
        assert result.termination[0] == (terminated or info["lives"] < lives)
        losses += info["lives"] < lives
        if terminated or truncated:
            assert result.episode_return[0] == score
            picture, info = theirs.reset()
            score, ends = 0.0, ends + 1
        np.testing.assert_array_equal(result.observation[0], picture)
    assert name != BREAKOUT or (ends >= 2 and losses >= 10)


def test_equal_to_ale_pys_vector_environment_without_sticky_actions(make: Make) -> None:
    ours = make(num_envs=2, StickyActions=0.0)
    theirs = ale_py.AtariVectorEnv(
        "breakout", 2, img_height=64, img_width=64, grayscale=False, stack_num=1, noop_max=0,
        use_fire_reset=False, reward_clipping=False, repeat_action_probability=0.0,
        autoreset_mode="SameStep",
    )  # fmt: skip
    pictures, info = theirs.reset(seed=3)
    np.testing.assert_array_equal(ours.reset(), pictures[:, 0])
    ends = losses = rewards = 0
    for action in random_actions(900).reshape(-1, 2):
        ours.start_step(action)
        result, lives = ours.finish_step(), info["lives"]
        pictures, reward, terminated, truncated, info = theirs.step(action)
        np.testing.assert_array_equal(result.reward, reward)
        np.testing.assert_array_equal(result.episode_end, terminated | truncated)
        lost = (info["lives"] < lives) & ~terminated  # after a reset, theirs are the next episode's
        np.testing.assert_array_equal(result.termination, terminated | lost)
        np.testing.assert_array_equal(result.observation, pictures[:, 0])
        ends, losses, rewards = ends + terminated.sum(), losses + lost.sum(), rewards + reward.sum()
    theirs.close()
    assert ends >= 2 and losses >= 8 and rewards >= 3


# Episodes.


def test_an_episodes_last_reward_comes_with_the_next_ones_first_picture(make: Make) -> None:
    catch = make("Diagnostic/Catch-v0")
    first = catch.reset()
    at_top = (first[0, :6] == (255, 208, 64)).all(-1).any()
    assert at_top
    for number, result in enumerate(play(catch, [1] * 90), start=1):
        ends = number % 9 == 0
        assert result.episode_end[0] == ends and bool(result.termination[0]) == ends
        assert bool((result.observation[0, :6] == (255, 208, 64)).all(-1).any()) == ends
        if ends:
            assert abs(result.reward[0]) == 1 and result.episode_return[0] == result.reward[0]
            assert result.episode_length[0] == 9


def test_the_release_counts_the_last_reward_into_the_next_episode(make: Make) -> None:
    catch = make("Diagnostic/Catch-v0", release_quirks=True)
    catch.reset()
    ends = play(catch, [1] * 27)[8::9]
    assert [end.episode_return[0] for end in ends] == [0, *(end.reward[0] for end in ends[:-1])]


@pytest.mark.parametrize("release_quirks", [False, True])
def test_episodes_differ_but_in_the_release_repeat(release_quirks: bool, make: Make) -> None:
    game = make(MaxEpisodeFrames=160, release_quirks=release_quirks)
    game.reset()
    actions = random_actions(40)
    episodes = [play(game, actions) for _ in range(2)]
    assert all(episode[-1].episode_end[0] for episode in episodes)
    pictures = [np.stack([step.observation for step in episode]) for episode in episodes]
    assert np.array_equal(*pictures) == release_quirks


def test_a_truncation_ends_the_episode_but_is_no_termination(make: Make) -> None:
    game = make("ALE/Boxing-v5", MaxEpisodeFrames=42)
    game.reset()
    results = play(game, [0] * 22)
    assert [int(result.episode_end[0]) for result in results] == ([0] * 10 + [1]) * 2
    assert not any(result.termination[0] for result in results)
    assert results[10].episode_length[0] == results[21].episode_length[0] == 11


def test_life_loss_can_be_kept_out_of_the_terminations(make: Make) -> None:
    learning, scoring = make(), make(LifeLossTermination=False)
    learning.reset(), scoring.reset()
    actions = random_actions(250)
    pairs = list(zip(play(learning, actions), play(scoring, actions), strict=True))
    assert all(b.termination[0] == b.episode_end[0] for _, b in pairs)
    assert sum(a.termination[0] for a, _ in pairs) > sum(b.termination[0] for _, b in pairs)


def test_points_of_a_box_are_clipped_to_it(make: Make) -> None:
    environment = make("Diagnostic/Reach-v0", num_envs=3)
    hands = []
    for action in ([0.25, -0.5], [1.75, -3.0], [1.0, -1.0]):
        environment.reset()
        environment.start_step(np.tile(np.array(action, np.float32), (3, 1)))
        hands.append(environment.finish_step().reward)
    assert (hands[0] != hands[1]).all() and (hands[1] == hands[2]).all()


def test_learning_from_the_sign_of_rewards_leaves_returns_whole(make: Make) -> None:
    ways = ({}, {"ClipRewards": True}, {"RewardScale": 0.25}, {"ClipRewards": True, "RewardScale": 3.0})
    environments = [make("ALE/MsPacman-v5", **way, MaxEpisodeFrames=400) for way in ways]
    for environment in environments:
        environment.reset()
    actions = random_actions(120, environments[0].spaces.action.size)
    steps = list(zip(*(play(environment, actions) for environment in environments), strict=True))
    rewards = np.array([[result.reward[0] for result in step] for step in steps])
    assert set(rewards[:, 1]) == {0.0, 1.0} and rewards[:, 0].max() > 1
    for column, expected in ((1, np.sign(rewards[:, 0])), (2, rewards[:, 0] / 4), (3, 3 * rewards[:, 1])):
        np.testing.assert_array_equal(rewards[:, column], expected)
    ended = [{result.episode_return[0] for result in step} for step in steps if step[0].episode_end[0]]
    assert len(ended) == 1 and len(ended[0]) == 1 and max(ended[0]) > 1


def test_three_workers_equal_three_single_environments(make: Make) -> None:
    together, alone = make(num_envs=3, seed=5), [make(seed=5 + index) for index in range(3)]
    first = np.concatenate([single.reset() for single in alone])
    np.testing.assert_array_equal(together.reset(), first)
    for action in random_actions(240).reshape(-1, 3):
        together.start_step(action)
        singles = [play(single, [choice])[0] for single, choice in zip(alone, action, strict=True)]
        merged = {
            name: np.concatenate([vars(single)[name] for single in singles]) for name in vars(singles[0])
        }
        assert_same(together.finish_step(), StepResult(**merged))


# Other environments, names and actions.


@pytest.mark.parametrize("name", ["BreakoutNoFrameskip-v4", "Breakout-v0"])
def test_an_old_id_of_a_game_is_played_by_the_settings_too(name: str, make: Make) -> None:
    old, new = (make(each, MaxEpisodeFrames=100) for each in (name, BREAKOUT))
    np.testing.assert_array_equal(old.reset(), new.reset())
    actions = random_actions(40)
    for a, b in zip(play(old, actions), play(new, actions), strict=True):
        assert_same(a, b)


def test_settings_of_the_emulator_are_said_to_be_ignored_elsewhere() -> None:
    changed = replace(DEFAULTS, FrameSkip=2, StickyActions=0.0, StepTimeout=9.0)
    for name in (BREAKOUT, "Breakout-v4"):
        assert ignored_settings(name, changed) == []
    assert ignored_settings("Diagnostic/Catch-v0", DEFAULTS) == []
    (line,) = ignored_settings("Diagnostic/Catch-v0", changed)
    assert "Environment.FrameSkip, Environment.StickyActions" in line and "Diagnostic/Catch-v0" in line


def test_grey_images_lives_time_limits_and_action_offsets(make: Make) -> None:
    for name in ("stub_envs:StubGrey-v0", "stub_envs:StubGreyChannel-v0"):
        grey = make(name, image_size=16)
        assert grey.reset().shape == (1, 16, 16, 3)
        results = play(grey, [0, 1, 2] * 3)
        assert [result.reward[0] for result in results[:3]] == [5, 6, 7]
        assert [int(result.observation[0].max()) for result in results[:3]] == [1, 2, 3]
        assert results[6].episode_end[0] == (name == "stub_envs:StubGrey-v0")
        assert not results[6].termination[0]
    lives = make("stub_envs:StubLives-v0", image_size=16)
    lives.reset()
    assert [int(result.termination[0]) for result in play(lives, [0] * 10)] == [0, 0, 1] * 3 + [1]


class ScriptedLives:
    """An emulator whose number of lives follows a script."""

    def __init__(self, ale: Any, script: list[int]) -> None:
        self._ale, self._script = ale, script

    def lives(self) -> int:
        return self._script.pop(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ale, name)


@pytest.mark.parametrize("num_envs", [1, 2])
def test_pictures_are_those_that_the_environment_draws(make: Make, num_envs: int) -> None:
    game = make(num_envs=num_envs)
    game.reset()
    pictures = []
    for action in random_actions(3):
        (result,) = play(game, [action])
        pictures.append(game.render())
        resized = cv2.resize(pictures[-1], (64, 64), interpolation=cv2.INTER_AREA)
        assert pictures[-1].shape == (210, 160, 3) and np.array_equal(resized, result.observation[0])
    assert not np.array_equal(pictures[0], pictures[1])  # each is a copy of its own
    grey = make("stub_envs:StubGrey-v0", num_envs)
    grey.reset()
    assert grey.render().shape == (20, 30, 3)


def test_what_is_seen_as_a_vector_is_drawn_if_it_can_be(make: Make) -> None:
    pytest.importorskip("pygame")
    pole = make("CartPole-v1")
    pole.reset()
    picture = pole.render()
    assert picture.shape == (400, 600, 3) and picture.dtype == np.uint8 and picture.std() > 0
    blind = make("stub_envs:StubGrey-v0", Observation="vector")
    blind.reset()
    with pytest.raises(UserError, match=r"StubGrey-v0.*offers no picture"):
        blind.render()


def test_a_life_lost_just_after_an_extra_life_counts(make: Make) -> None:
    stub = make("stub_envs:StubExtraLife-v0", image_size=16)
    stub.reset()
    assert [int(result.termination[0]) for result in play(stub, [0] * 3)] == [0, 1, 0]
    game = make(BREAKOUT)
    game.reset()
    inner = game._pool._members[0]._environment._env
    inner._ale = ScriptedLives(inner._ale, [6, 5, 5])
    assert [int(result.termination[0]) for result in play(game, [0] * 3)] == [0, 1, 0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Boxing", "unknown environment 'Boxing' (did you mean 'ALE/Boxing-v5'?)"),
        ("ALE/Boxng-v5", "(did you mean 'ALE/Boxing-v5'?)"),
        ("kung_fu_master", "(did you mean 'ALE/KungFuMaster-v5'?)"),
        ("PongNoFrameskip-v7", "(did you mean 'PongNoFrameskip-v4'?)"),
        ("Diagnostic/Catch", "(did you mean 'Diagnostic/Catch-v0'?)"),
        ("CarRacing-v9", "(did you mean 'CarRacing-v"),
        ("no_such_module:Game-v0", "module 'no_such_module' cannot be imported"),
        ("stub_envs:StubChannelsFirst-v0", "its observations are Box(0, 255, (3, 20, 30), uint8); supported"),
        ("stub_envs:StubFourFrames-v0", "its observations are Box(0, 255, (20, 30, 4), uint8); supported"),
        ("stub_envs:StubImageAndVector-v0", "its observations are Dict('image': Box("),
        (
            "stub_envs:StubUnbounded-v0",
            "its actions are Box(-inf, inf, (2,), float32); supported are Discrete",
        ),
        ("stub_envs:StubMultiDiscrete-v0", "its actions are MultiDiscrete([2 3]); supported"),
        ("stub_envs:StubMultiBinary-v0", "its actions are MultiBinary(3); supported"),
        ("stub_envs:StubDictActions-v0", "its actions are Dict("),
        ("stub_envs:StubStartRaises-v0", "RuntimeError: the stub raises"),
    ],
)
@pytest.mark.parametrize("num_envs", [1, 2])
def test_what_cannot_be_used_is_named(name: str, text: str, num_envs: int, make: Make) -> None:
    with pytest.raises(UserError) as caught:
        make(name, num_envs)
    assert text in str(caught.value) and name in str(caught.value) and "\n" not in str(caught.value)


def test_wrong_actions_are_refused(make: Make) -> None:
    catch = make("Diagnostic/Catch-v0")
    catch.reset()
    for actions in ([3], [-1], [0.0], [0, 0], 0, [True]):
        with pytest.raises(ValueError, match="actions must be"):
            catch.start_step(np.array(actions))
    catch.start_step(np.array([0]))
    with pytest.raises(RuntimeError, match="finish_step comes first"):
        catch.start_step(np.array([0]))


# Saving and restoring.

CONTINUE = """
import hashlib, sys, torch
from test_env_wrapper import digest_of_2000_steps, VectorEnvironment, DEFAULTS
from dataclasses import replace
game = VectorEnvironment("ALE/Breakout-v5", replace(DEFAULTS, MaxEpisodeFrames=800), 64, 1, 99)
assert game.load_state_dict(torch.load(sys.argv[1], weights_only=True)) == []
print(digest_of_2000_steps(game))
"""


def digest_of_2000_steps(game: VectorEnvironment) -> str:
    """Of pictures, rewards, terminations, returns, lengths, and how often episodes ended in which way."""
    digest, terminated, truncated = hashlib.sha256(), 0, 0
    for result in play(game, random_actions(2_000)):
        end = result.episode_end[0]
        terminated += bool(end and result.termination[0])
        truncated += bool(end and not result.termination[0])
        for name, value in vars(result).items():
            if end or name not in ("episode_return", "episode_length"):
                digest.update(value.tobytes())
    return f"{digest.hexdigest()} {terminated} {truncated}"


def test_a_fresh_process_continues_bit_for_bit(make: Make, tmp_path: Path) -> None:
    game = make(MaxEpisodeFrames=800)
    game.reset()
    play(game, random_actions(333, seed=1))
    torch.save(game.state_dict(), tmp_path / "state.pt")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CONTINUE, str(tmp_path / "state.pt")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as other:
        expected = digest_of_2000_steps(game)
        assert other.communicate()[0].strip() == expected
    _, terminated, truncated = expected.split()
    assert int(terminated) >= 1 and int(truncated) >= 1


@pytest.mark.parametrize(("name", "first", "last"), [(BREAKOUT, 50, 62), ("ALE/Qbert-v5", 57, 63)])
def test_every_step_can_be_the_one_that_was_saved(name: str, first: int, last: int, make: Make) -> None:
    # ale-py's own state forgets the action that a sticky frame repeats, and in Qbert also what the
    # video chip was doing when an episode began, which a reset makes good.
    game, restored, ahead = make(name, MaxEpisodeFrames=240), make(name, MaxEpisodeFrames=240), 4
    game.reset()
    actions = random_actions(last + ahead, game.spaces.action.size, seed=2)
    results, states = [], []
    for action in actions:
        states.append(game.state_dict())
        results += play(game, [action])
    assert results[59].episode_end[0]
    for step in range(first, last):
        assert restored.load_state_dict(states[step]) == []
        np.testing.assert_array_equal(restored.observation, results[step - 1].observation)
        for a, b in zip(play(restored, actions[step : step + ahead]), results[step:], strict=False):
            assert_same(a, b)


@pytest.mark.parametrize("name", ["Diagnostic/Catch-v0", "Diagnostic/Twins-v0", BREAKOUT])
def test_workers_are_restored_too(name: str, make: Make) -> None:
    saved, restored = make(name, num_envs=2), make(name, num_envs=2, seed=20)
    saved.reset()
    play(saved, random_actions(60, 2))
    assert restored.load_state_dict(saved.state_dict()) == []
    np.testing.assert_array_equal(restored.observation, saved.observation)
    actions = random_actions(100, 2, seed=1)
    for a, b in zip(play(saved, actions), play(restored, actions), strict=True):
        assert_same(a, b)


def test_what_cannot_be_restored_begins_new_episodes_and_says_so(make: Make) -> None:
    stub, game = make("stub_envs:StubChance-v0", image_size=16), make(MaxEpisodeFrames=40)
    for environment, start in ((stub, None), (game, [0] * 99)):
        environment.reset()
        play(environment, [1] * 15)
        state, reason = environment.state_dict(), "did not come back to the saved state"
        if start:
            state["environments"][0]["start"] = torch.tensor(start, dtype=torch.uint8)
        notes = environment.load_state_dict(state)
        assert len(notes) == 1 and reason in notes[0] and environment.name in notes[0]
        seeds = environment.seeds.copy()
        assert seeds != state["seeds"]
        assert play(environment, [1])[0].episode_length[0] == 1
        environment.load_state_dict(state)
        assert environment.seeds == seeds  # the same state, the same new seeds
        play(environment, [1] * 5)
        state = environment.state_dict()
        if start:
            state["environments"][0]["start"] = torch.tensor(start, dtype=torch.uint8)
        environment.load_state_dict(state)
        assert environment.seeds != seeds  # a later state that cannot be restored begins other episodes


@pytest.mark.parametrize("error", [RuntimeError, SystemExit, KeyboardInterrupt])
def test_an_environment_that_raises_while_it_is_restored_begins_a_new_episode(
    make: Make, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def fails(*_: Any) -> None:
        raise error

    environment = make("stub_envs:StubSteady-v0", image_size=16)
    environment.reset()
    play(environment, [1] * 3)
    state = environment.state_dict()
    monkeypatch.setattr(signal, "getsignal", lambda number: raise_interrupt)  # as in a command
    monkeypatch.setattr(sys.modules["stub_envs"].Steady, "step", fails)
    (note,) = environment.load_state_dict(state)
    assert "did not come back" in note and error.__name__ in note
    error = Interrupt
    with pytest.raises(Interrupt):
        environment.load_state_dict(state)


@pytest.fixture(scope="module")
def breakout() -> Iterable[VectorEnvironment]:
    """One game for all that only fails to load into it."""
    game = VectorEnvironment(BREAKOUT, DEFAULTS, 64, 1, 3)
    game.reset()
    yield game
    game.close()


def without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.pop(key)


@pytest.mark.parametrize(
    "change",
    [
        without("fault_count"),
        lambda state: state.update(fault_count="two"),
        lambda state: state.update(seeds=[]),
        lambda state: state.update(seeds=[1, 2]),
        lambda state: state.update(episode_return=torch.zeros(3)),
        lambda state: state.update(observation=torch.zeros(1, 8, 8, 3)),
        lambda state: state.update(environments=[]),
    ],
)
def test_a_malformed_state_is_refused(
    change: Callable[[dict[str, Any]], None], breakout: VectorEnvironment
) -> None:
    state = copy.deepcopy(breakout.state_dict())
    change(state)
    with pytest.raises((KeyError, TypeError, ValueError)):
        breakout.load_state_dict(state)


@pytest.mark.parametrize("key", ["seed", "start", "actions", "digest"])
@pytest.mark.parametrize("value", [None, [5], torch.full((3,), 0.5), "x"])
def test_what_is_no_state_of_an_environment_begins_a_new_episode(
    key: str, value: object, breakout: VectorEnvironment
) -> None:
    state = copy.deepcopy(breakout.state_dict())
    state["environments"][0][key] = value
    (note,) = breakout.load_state_dict(state)
    assert "did not come back to the saved state" in note
