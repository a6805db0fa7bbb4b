"""A session: game, model and dream side by side, and what is recorded of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import stub_envs
import torch
from PIL import Image
from play_support import make_session
from tests_support import CPU
from tiny_runs import train

from configuration.schema import EnvironmentConfig
from environments import control
from evaluation.playing.commands import apply, read_command
from evaluation.playing.frames import Frame, encode
from evaluation.playing.session import Session
from evaluation.policies import SHIPPED, load_policy
from replay_buffer import ReplayBuffer
from training.demonstrations import load_demonstrations
from utils import UserError

LEFT, STAY, RIGHT = 0, 1, 2


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    session = make_session(tmp_path)
    yield session
    session.close()


def do(session: Session, name: str, value: object = None) -> None:
    """What a page's message does."""
    command = read_command(session, json.dumps({"do": name, "value": value}))
    assert command is not None
    apply(session, *command)


def header(message: bytes) -> dict:
    return json.loads(message[4 : 4 + int.from_bytes(message[:4], "little")])


def paddle(frame: Frame) -> int:
    """The paddle's column in the bottom row of Catch."""
    return int((frame.pictures["seen"][-1] == (64, 176, 255)).all(-1).nonzero()[0][0] * 5 / 16)


def test_you_play_the_game_and_a_short_tap_is_not_lost(session: Session) -> None:
    do(session, "player", "you")
    assert session.meanings == ["LEFT", "NOOP", "RIGHT"] and session.idle == STAY
    before = paddle(session.step())
    do(session, "action", RIGHT)
    do(session, "action", STAY)  # the key is up again before the next step
    assert paddle(session.step()) == before + 1
    assert paddle(session.step()) == before + 1
    do(session, "action", LEFT)  # held
    assert [paddle(session.step()) for _ in range(2)] == [before, before - 1]


@pytest.mark.parametrize("blind", [False, True])
def test_an_agent_that_acts_blindly_in_training_does_so_here(session: Session, blind: bool) -> None:
    """As the original STORM's: the actor's latent is not that of the frame that is seen."""
    session.policy.blind, seen = blind, []
    session.policy.agent.actor.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for _ in range(4):
        session.step()
        shown, foreseen = session._model.feature, session.dream.feature
        assert torch.equal(seen[-1], foreseen if blind else shown)
    assert not torch.equal(shown, foreseen)


def test_a_page_that_joins_while_a_frame_is_made_sees_the_one_before(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined: list[bytes] = []

    def slowly(frame: Frame) -> bytes:
        joined.append(session.message)
        return encode(frame)

    monkeypatch.setattr("evaluation.playing.session.encode", slowly)
    do(session, "mode", "branch")  # at the first step, whose frame is made anew
    assert joined


def test_a_branch_begins_where_the_game_is_and_goes_on_under_the_same_actions(session: Session) -> None:
    session.step()
    do(session, "mode", "branch")
    facts = header(session.message)
    assert facts["apart"] == 0 and (session.dream.picture() == session._model.picture()).all()
    for step in range(1, 4):
        frame = session.step()
        assert frame.facts["apart"] == step and {"reward", "dream_reward", "error"} <= set(frame.facts)
        assert torch.equal(session.dream._past[-1][1], session._model._past[-1][1])
    do(session, "split")
    assert header(session.message)["apart"] == 0


def test_in_the_dream_the_game_stands_still(session: Session) -> None:
    session.step()
    do(session, "mode", "dream")
    frames = [session.step() for _ in range(12)]
    assert all((frame.pictures["game"] == frames[0].pictures["game"]).all() for frame in frames)
    assert "reward" not in frames[0].facts and "dream_reward" in frames[0].facts
    do(session, "mode", "game")
    assert (session.step().pictures["game"] != frames[0].pictures["game"]).any()


def test_one_goes_back_to_an_earlier_step_and_dreams_on_from_there(session: Session) -> None:
    seen = {frame.facts["step"]: frame for frame in (session.step() for _ in range(5))}
    assert session.look(3) == encode(seen[3]) and session.look(99) is None
    do(session, "split_at", 3)
    assert session.controls.mode == "dream"
    assert (session.dream.picture() == seen[3].pictures["posterior"]).all()
    do(session, "split_at", 99)  # nothing happens
    assert [session.step().facts["apart"] for _ in range(3)] == [1, 2, 3]
    number = session.number
    session.step()
    do(session, "split_at", number)
    assert session.step().facts["apart"] == 4


def test_the_way_of_sampling_is_switched_while_it_runs(session: Session) -> None:
    assert session.plans == ["1/1/1", "4/4/1"]  # of 4 latents
    do(session, "plan", "4/4/1")
    assert session.policy.world_model.prior.plan.sweeps == (4, 4)
    facts = session.step().facts
    assert session.plan == "4/4/1"
    assert [sorted(groups) for groups in facts["sweeps"]] == [[0, 1, 2, 3]] * 2  # which latent came when
    do(session, "plan", "1/1/1")
    assert header(session.message)["sweeps"] == facts["sweeps"]  # as these were drawn
    do(session, "mode", "branch")
    assert "sweeps" not in header(session.message)  # its latents are the posterior's
    assert session.step().facts["sweeps"] == [[0, 0, 0, 0]]


def test_one_can_go_back_to_a_way_of_sampling_of_the_agents_own(tmp_path: Path) -> None:
    with closing(make_session(tmp_path)) as other:
        prior = other.policy.world_model.prior
        prior.plan = replace(prior.plan, draft_groups=2, revise_groups=2)
        session = Session(other.policy, tmp_path, "own")
    with closing(session):
        assert session.plans == ["2/2/1", "1/1/1", "4/4/1"]
        do(session, "plan", "1/1/1")
        do(session, "plan", "2/2/1")
        assert session.step() and session.plan == "2/2/1"


def test_training_takes_a_recording(session: Session, tmp_path: Path) -> None:
    do(session, "record", True)
    for _ in range(60):
        session.step()
    do(session, "record", False)
    settings = [
        "BasicSettings.env_name=Diagnostic/Catch-v0",
        f"BasicSettings.trajectory_path={session.saved[0]}",
    ]
    settings += ["JointTrainAgent.UseDemonstration=true", "JointTrainAgent.SampleMaxSteps=50"]
    result = train(tmp_path, "shown", *settings)
    assert result.code == 0, result.err


@pytest.mark.parametrize("mode", ["game", "dream", "branch"])
def test_a_recording_is_a_demonstration_and_a_film(session: Session, mode: str) -> None:
    do(session, "mode", mode)
    do(session, "record", True)
    frames = [session.step() for _ in range(10)]
    do(session, "record", False)
    trajectory, film = map(Path, session.saved)
    arrays = np.load(trajectory)
    assert arrays["action"].tolist() == [frame.facts["action"] for frame in frames]
    if mode != "dream":
        assert arrays["done"].sum() == 1 and set(arrays["reward"]) <= {-1.0, 0.0, 1.0}
        assert (arrays["obs"][1:] == np.stack([frame.pictures["seen"] for frame in frames[:-1]])).all()
    assert len(load_demonstrations(trajectory, session.spaces, 10, CPU, EnvironmentConfig())) == 10
    if film.suffix == ".gif":
        with Image.open(film) as pictures:
            assert pictures.size == ((2 if mode == "branch" else 1) * 240, 240)


def recorded(session: Session, steps: int) -> tuple[dict[str, np.ndarray], list[dict], ReplayBuffer]:
    """What is recorded of so many steps, what the page is told of them, and the demonstrations they are."""
    do(session, "record", True)
    facts = [session.step().facts for _ in range(steps)]
    do(session, "record", False)
    settings, arrays = session.policy.config.Environment, dict(np.load(session.saved[0]))
    return arrays, facts, load_demonstrations(Path(session.saved[0]), session.spaces, 4, CPU, settings)


LEARNED = [{"RewardScale": 0.5}, {"ClipRewards": True, "RewardScale": 0.5}]


@pytest.mark.parametrize("settings", LEARNED)
def test_rewards_and_ends_are_recorded_as_the_game_has_them(tmp_path: Path, settings: dict) -> None:
    """Not as this run learns from them: a demonstration's rewards are clipped and scaled when it is read."""
    with closing(make_session(tmp_path, "STORM", "stub_envs:StubSteady-v0", **settings)) as session:
        arrays, facts, loaded = recorded(session, 10)
    assert arrays["reward"].tolist() == [0, -3, 2] * 3 + [0]
    assert loaded.export_rows(0, 10)["reward"][:, 0].tolist() == [each["reward"] for each in facts]
    assert [each["end"] for each in facts] == [False, False, True] * 3 + [True]  # three lives, the game
    assert arrays["done"].tolist() == [0] * 9 + [1]


@pytest.mark.parametrize("settings", LEARNED)
def test_dreamt_rewards_are_learned_as_they_were_dreamt(
    tmp_path: Path, settings: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    dreamt = [0.5, -0.4, 0.1, 0.0]
    with closing(make_session(tmp_path, **settings)) as session:
        predictions = iter(dreamt)
        monkeypatch.setattr(session.policy.world_model, "predict_reward", lambda _: next(predictions))
        do(session, "mode", "dream")
        _, _, loaded = recorded(session, 4)
    nearest = [0.5, -0.5, 0.0, 0.0] if "ClipRewards" in settings else dreamt
    assert loaded.export_rows(0, 4)["reward"][:, 0].tolist() == pytest.approx(nearest)


def test_a_recording_ends_before_a_step_that_failed(tmp_path: Path) -> None:
    stub_envs.Stumbling.taken = 0  # the fifth fails
    with closing(make_session(tmp_path, "STORM", "stub_envs:StubStumbling-v0")) as session:
        arrays, facts, _ = recorded(session, 5)
    assert len(facts) == 5 and arrays["reward"].tolist() == [0, -3, 2, 0] and not arrays["done"].any()


@pytest.mark.parametrize(("name", "value"), [("reset", None), ("split_at", 1)])
def test_a_recording_ends_where_its_steps_would_no_longer_follow_each_other(
    session: Session, name: str, value: int | None
) -> None:
    do(session, "mode", "dream")
    do(session, "record", True)
    session.step()
    do(session, name, value)
    assert session.recording is None and len(session.saved) == 2


def test_the_return_so_far_and_that_of_the_last_episode_stay_in_sight(session: Session) -> None:
    so_far, last = 0.0, None
    for _ in range(25):
        facts = session.step().facts
        so_far += facts["reward"]
        if facts["episode_end"]:
            so_far, last = 0.0, so_far
        assert (facts["return"], facts["last_return"]) == (so_far, last)
    assert last is not None


def test_what_a_step_brought_stays_in_sight_when_the_dream_splits_off(session: Session) -> None:
    facts = session.step().facts
    do(session, "mode", "branch")
    do(session, "split")
    again = header(session.message)
    assert all(again[name] == facts[name] for name in ("action", "reward", "end", "foreseen_reward"))


def test_a_recording_that_cannot_be_saved_says_so(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(recording: object) -> None:
        raise UserError("the disk is full")

    monkeypatch.setattr("evaluation.playing.recording.Recording.save", full)
    do(session, "record", True)
    session.step()
    do(session, "record", False)
    assert (session.saved, session.problem) == ([], "the disk is full")
    do(session, "record", True)
    assert session.problem == ""


def test_a_reset_begins_another_episode(session: Session) -> None:
    session.step()
    do(session, "reset")
    assert (session._observation[0] != session._observation[1, 0]).any()  # the ball is on top


def test_states_and_continuous_actions(tmp_path: Path) -> None:
    session = make_session(tmp_path, "STORM", "Diagnostic/Reach-v0")
    try:
        assert session.plans == [] and session.idle == [0.0, 0.0]
        do(session, "player", "you")
        do(session, "mode", "branch")
        do(session, "action", [1, 0.0])
        before = session._observation
        frame = session.step()
        assert frame.facts["vectors"]["seen"][0] > before[0] and len(frame.facts["mean"]) == 2
        assert set(frame.pictures) == {"game"} and len(frame.facts["vectors"]["dream"]) == 4
        do(session, "record", True)
        session.step()
        do(session, "record", False)
        assert np.load(session.saved[0])["obs"].shape == (1, 4)
    finally:
        session.close()


@pytest.mark.parametrize("name", sorted(path.name for path in SHIPPED.glob("*-catch")))
def test_shipped_agents_play_well_and_foresee_what_comes(name: str, tmp_path: Path) -> None:
    frames = [frame.facts for frame in play_shipped(name, tmp_path, 90)]
    returns = [facts["last_return"] for facts in frames if facts["episode_end"]]
    assert len(returns) == 10 and sum(returns) >= 8
    within = [facts for facts in frames if not facts["end"]]  # the next ball cannot be foreseen
    assert np.mean([facts["error"] for facts in within]) < 0.02
    assert np.mean([facts["foreseen_end"] == facts["end"] for facts in frames]) > 0.9


def test_a_shipped_agent_moves_an_arm_to_where_it_should_be(tmp_path: Path) -> None:
    pytest.importorskip("dm_control")
    frames = play_shipped("reacher-easy-STORM-control", tmp_path, 120)
    rewards = np.array([[frame.facts["reward"], frame.facts["foreseen_reward"]] for frame in frames])
    assert rewards[-40:, 0].mean() > 1.5  # 2 at most
    assert np.abs(rewards[:, 0] - rewards[:, 1]).mean() < 0.2
    if any(map(control._works, control.LIBRARIES)):
        assert frames[-1].pictures["game"].shape == (240, 240, 3)


def play_shipped(name: str, folder: Path, steps: int) -> list[Frame]:
    """What is seen of an agent that is there."""
    session = Session(load_policy(name, device="cpu"), folder, name)
    try:
        return [session.step() for _ in range(steps)]
    finally:
        session.close()
