"""Whole runs: train.py, eval.py and the shell scripts, and the files that they leave."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from parity import read_manifest
from PIL import Image, ImageSequence
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import (
    CONTEXT,
    GIT_STORM,
    HORIZON,
    REPOSITORY,
    SMALL,
    STEPS,
    WARM_UP,
    differing,
    evaluate,
    in_folder,
    metrics,
    train,
    weights,
    without_time,
)

from agents import Policy
from compute.execution import Execution
from configuration.loading import load_config
from env_wrapper import VectorEnvironment
from evaluation import load_policy, scoring, video
from evaluation import policies as evaluation_policies
from evaluation.episodes import environment_spaces
from evaluation.episodes import evaluate as play_episodes
from evaluation.policies import EvaluationPolicy, load_models
from evaluation.tables import Episode
from replay_buffer import ReplayBuffer
from training.learner import Learner
from utils import UserError

HOW = ["episodes", "seed", "protocol", "greedy", "num_envs", "settings"]
COLUMNS = ["step", "episode_avg_return", "episode_std_return", "human_normalised_score", *HOW]
RELEASE_TAGS = {
    "sample/ALE/KungFuMaster-v5_reward",
    "sample/ALE/KungFuMaster-v5_episode_steps",
    "replay_buffer/length",
    *(
        f"WorldModel/{name}"
        for name in (
            "reconstruction_loss",
            "reward_loss",
            "termination_loss",
            "dynamics_loss",
            "dynamics_real_kl_div",
            "representation_loss",
            "representation_real_kl_div",
            "total_loss",
        )
    ),
    *(
        f"ActorCritic/{name}"
        for name in ("policy_loss", "value_loss", "entropy_loss", "S", "norm_ratio", "total_loss")
    ),
}
OWN_TAGS = {
    "WorldModel/gradient_norm",
    "WorldModel/posterior_entropy",
    "WorldModel/prior_entropy",
    "ActorCritic/gradient_norm",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two finished runs: "storm", and "git" with three environments."""
    folder = tmp_path_factory.mktemp("runs")
    assert train(folder, "storm").code == 0
    assert train(folder, "git", GIT_STORM, "JointTrainAgent.NumEnvs=3").code == 0
    return folder


def table(folder: Path, name: str) -> list[list[str]]:
    return list(csv.reader((folder / "outputs" / "eval_result" / f"{name}.csv").read_text().splitlines()))


# --- what training leaves


@pytest.mark.parametrize("name", ["storm", "git"])
def test_checkpoints_are_flat_tensors_under_nominal_steps(runs: Path, name: str) -> None:
    checkpoints = runs / "outputs" / name / "ckpt"
    steps = (50, 100, STEPS)
    expected = {f"{model}_{step}.pth" for model in ("world_model", "agent") for step in steps}
    assert {path.name for path in checkpoints.iterdir()} == expected
    for path in checkpoints.iterdir():
        state = torch.load(path, weights_only=True)
        assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())
        assert not any("_orig_mod" in key for key in state)
    assert differing(weights(runs, name, 50), weights(runs, name, 100))


@pytest.mark.parametrize("name", ["storm", "git"])
def test_tensorboard_holds_the_known_tags_and_a_moving_picture(runs: Path, name: str) -> None:
    events = EventAccumulator(str(runs / "runs" / name), size_guidance={"images": 0})
    events.Reload()
    assert set(events.Tags()["scalars"]) >= RELEASE_TAGS | OWN_TAGS
    lengths = {event.step: event.value for event in events.Scalars("replay_buffer/length")}
    assert lengths[20 if name == "storm" else 21] == (20 if name == "storm" else 21)
    assert max(lengths) == STEPS and lengths[STEPS] == 90  # the ring is full
    videos = events.Images("Imagine/predict_video")
    assert [video.step for video in videos] == ([50, 100, STEPS] if name == "storm" else [51, 102, STEPS])
    picture = Image.open(io.BytesIO(videos[-1].encoded_image_string))
    assert picture.format == "GIF" and picture.is_animated and picture.n_frames == CONTEXT + HORIZON
    assert picture.size == (4 * 16, 3 * 16 + 2)  # four trajectories; truth, prediction, error and the mark


def test_metrics_hold_the_same_scalars_and_the_config_is_saved(runs: Path) -> None:
    lines = metrics(runs, "storm")
    assert {tag for line in lines for tag in line} >= RELEASE_TAGS | OWN_TAGS
    assert all(tag == "step" or "/" in tag for line in lines for tag in line)
    assert {tag for line in lines for tag in line if "elapsed" in tag or "per_s" in tag} == {
        "time/elapsed_s",
        "time/steps_per_s",
    }
    saved = yaml.safe_load((runs / "outputs" / "storm" / "config.yaml").read_text())
    assert saved["JointTrainAgent"]["BatchLength"] == 8 and saved["BasicSettings"]["n"] == "storm"


def test_episodes_are_logged_with_their_lengths(runs: Path) -> None:
    tag = "sample/ALE/KungFuMaster-v5"
    for name, count in (("storm", 4), ("git", 3)):  # truncated after 25 steps, in each environment
        lengths = [line[f"{tag}_episode_steps"] for line in metrics(runs, name) if f"{tag}_reward" in line]
        assert lengths == [25.0] * count


def test_same_command_again_says_finished_and_changes_nothing(runs: Path) -> None:
    files = [path for path in (runs / "outputs" / "storm").rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    result = train(runs, "storm")
    assert result.code == 0 and "finished" in result.out
    assert {path: path.read_bytes() for path in files} == before


# --- the order and the counts of the loop


def record_calls(monkeypatch: pytest.MonkeyPatch, cls: type, method: str, seen: Callable[..., None]) -> None:
    original = getattr(cls, method)

    def recorded(self: Any, *arguments: Any, **settings: Any) -> Any:
        seen(self, method)
        return original(self, *arguments, **settings)

    monkeypatch.setattr(cls, method, recorded)


def test_update_t_trains_while_the_emulator_steps_without_transition_t(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, int]] = []
    rows: list[int] = []

    def note(owner: object, name: str) -> None:
        if isinstance(owner, ReplayBuffer):
            rows[:] = [owner.count]
        events.append((name, rows[0] if rows else 0))

    for cls, names in {
        Policy: ("act",),
        VectorEnvironment: ("start_step", "finish_step"),
        Learner: ("update_world_model", "update_agent"),
        ReplayBuffer: ("append", "sample"),
    }.items():
        for name in names:
            record_calls(monkeypatch, cls, name, note)
    every = ("JointTrainAgent.TrainDynamicsEverySteps=1", "JointTrainAgent.TrainAgentEverySteps=1")
    assert train(tmp_path, "order", "JointTrainAgent.SampleMaxSteps=44", *every).code == 0
    first = events.index(("act", WARM_UP - 1))  # the append before it held WARM_UP - 1 rows
    iteration = [name for name, _ in events[first : first + 9]]
    assert iteration == [
        "act",
        "start_step",
        *("sample", "update_world_model", "sample", "update_agent"),
        "finish_step",
        "append",
        "act",
    ]
    counts = [count for name, count in events[first:] if name == "sample"][: 2 * 4]
    assert counts == [40, 40, 41, 41, 42, 42, 43, 43]  # update t sees the t transitions before t


@pytest.mark.parametrize(("num_envs", "model"), [(1, []), (3, [GIT_STORM])])
def test_updates_are_counted_in_environment_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_envs: int, model: list[str]
) -> None:
    updates: list[str] = []
    for name in ("update_world_model", "update_agent"):
        record_calls(monkeypatch, Learner, name, lambda owner, name: updates.append(name))
    settings = [
        f"JointTrainAgent.NumEnvs={num_envs}",
        "JointTrainAgent.BufferWarmUp=42",
        "JointTrainAgent.SampleMaxSteps=90",
        "JointTrainAgent.TrainDynamicsEverySteps=4",
        "JointTrainAgent.TrainAgentEverySteps=6",
    ]
    assert train(tmp_path, "counts", *settings, *model).code == 0
    assert updates.count("update_world_model") == 48 // 4 and updates.count("update_agent") == 48 // 6


def test_last_checkpoint_and_a_multiple_reached_by_the_same_step_are_both_saved(tmp_path: Path) -> None:
    settings = ["JointTrainAgent.NumEnvs=3", "JointTrainAgent.SampleMaxSteps=51"]
    assert train(tmp_path, "both", *settings).code == 0
    assert not differing(weights(tmp_path, "both", 50), weights(tmp_path, "both", 51))


def test_evaluating_filming_and_saving_do_not_change_training(runs: Path) -> None:
    often = [
        "JointTrainAgent.EvalEverySteps=45",
        "JointTrainAgent.SaveEverySteps=30",
        "JointTrainAgent.SaveEverySeconds=1e-9",  # after every step
    ]
    assert train(runs, "often", *often).code == 0
    assert not differing(weights(runs, "storm"), weights(runs, "often"))
    plain, extra = (without_time(metrics(runs, name)) for name in ("storm", "often"))
    evaluated = [line for line in extra if "eval/episode_avg_return" in line]
    assert [line["step"] for line in evaluated] == [45, 90]
    assert plain == [line for line in extra if line not in evaluated]


# --- other ways to train


def test_release_quirks_train_act_and_score_as_the_release_does(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(runs, "quirks", "BasicSettings.ReleaseQuirks=true").code == 0
    assert differing(weights(runs, "storm"), weights(runs, "quirks"))
    asked: list[bool] = []
    for module in (scoring, evaluation_policies):
        make = module.evaluation_environment
        monkeypatch.setattr(
            module, "evaluation_environment", lambda *given, make=make: asked.append(given[3]) or make(*given)
        )
    play = scoring.evaluate
    monkeypatch.setattr(scoring, "evaluate", lambda *given: asked.append(given[3]) or play(*given))
    with in_folder(runs):
        for name, as_release in (("quirks", True), ("storm", False)):
            policy = load_policy(name)
            policy.make_environment().close()
            assert policy.blind == as_release and asked == [as_release]
            asked.clear()
    for name, option, as_release in (
        ("quirks", "-greedy", True),
        ("quirks", "-protocol=fair", False),
        ("storm", "-protocol=release", True),
        ("storm", "-greedy", False),
    ):
        scored = evaluate(runs, f"-run_name={name}", "-checkpoints=last", "-num_episodes=1", option)
        assert scored.code == 0 and asked == [as_release, as_release], (name, option)
        asked.clear()


def test_an_agent_is_scored_acting_blindly_too_in_a_row_of_its_own(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acted: list[bool] = []
    record_calls(monkeypatch, EvaluationPolicy, "act", lambda owner, _: acted.append(owner.blind))
    for setting, blind in ((), False), (("JointTrainAgent.ActBlindly=True",), True):
        scored = evaluate(runs, "-run_name=storm", "-checkpoints=last", "-num_episodes=1", *setting)
        assert scored.code == 0 and set(acted) == {blind}, scored.error
        acted.clear()
    header, *rows = table(runs, "storm")
    assert {"", "JointTrainAgent.ActBlindly=True"} <= {row[header.index("settings")] for row in rows}
    refused = evaluate(runs, "-run_name=storm", "JointTrainAgent.ActingContextLength=2")
    assert refused.code == 2 and "must be an option, or a setting of Environment" in refused.error


def test_in_training_the_release_counts_the_last_reward_into_the_next_episode(tmp_path: Path) -> None:
    game = ["BasicSettings.env_name=Diagnostic/Catch-v0", "JointTrainAgent.SampleMaxSteps=100"]
    returns = {}
    for quirks in (False, True):
        assert train(tmp_path, str(quirks), *game, f"BasicSettings.ReleaseQuirks={quirks}").code == 0
        tag = "sample/Diagnostic/Catch-v0_reward"
        returns[quirks] = [line[tag] for line in metrics(tmp_path, str(quirks)) if tag in line]
    assert {abs(each) for each in returns[False]} == {1.0}  # a ball is caught or lost with the last step
    assert returns[True][0] == 0.0 and {abs(each) for each in returns[True][1:]} == {1.0}


def test_demonstrations_are_mixed_into_both_updates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, random = 40, np.random.default_rng(0)
    np.savez(
        tmp_path / "demo.npz",
        obs=random.integers(256, size=(steps, 16, 16, 3), dtype=np.uint8),
        action=random.integers(14, size=steps),
        reward=random.integers(2, size=steps),
        done=np.zeros(steps, bool),
    )
    batches: dict[str, int] = {}
    for name in ("update_world_model", "update_agent"):
        original = getattr(Learner, name)

        def sized(self: Learner, batch: Any, original: Any = original, name: str = name) -> Any:
            batches[name] = len(batch.action)
            return original(self, batch)

        monkeypatch.setattr(Learner, name, sized)
    settings = ["JointTrainAgent.UseDemonstration=true", "BasicSettings.trajectory_path=demo.npz"]
    settings += [
        "JointTrainAgent.DemonstrationBatchSize=3",
        "JointTrainAgent.ImagineDemonstrationBatchSize=5",
    ]
    assert train(tmp_path, "demo", "JointTrainAgent.SampleMaxSteps=50", *settings).code == 0
    assert batches == {"update_world_model": 2 + 3, "update_agent": 4 + 5}


@pytest.mark.parametrize(
    "path", ["storm", "outputs/storm", "outputs/storm/ckpt", "outputs/storm/ckpt/agent_120.pth"]
)
def test_pretrained_weights_are_where_a_run_starts(runs: Path, path: str) -> None:
    name = f"pretrained-{path.count('/')}"
    settings = [f"BasicSettings.pretrained_path={path}", "JointTrainAgent.SampleMaxSteps=42"]
    assert train(runs, name, *settings, "Models.Agent.LearningRate=0").code == 0
    before, after = weights(runs, "storm"), weights(runs, name, 42)
    actor = [key for key in before if key.startswith("agent.actor.")]
    assert actor and all(torch.equal(before[key], after[key]) for key in actor)


def test_a_pretrained_run_can_be_restarted_from_its_own_weights(runs: Path) -> None:
    assert train(runs, "again", "JointTrainAgent.SampleMaxSteps=42").code == 0
    old = weights(runs, "again", 42)
    settings = ["BasicSettings.Restart=true", "BasicSettings.pretrained_path=outputs/again/ckpt"]
    result = train(
        runs, "again", "JointTrainAgent.SampleMaxSteps=44", "Models.Agent.LearningRate=0", *settings
    )
    assert result.code == 0 and "archived the earlier run as again.archived-1" in result.err
    assert not differing(old, weights(runs, "again.archived-1", 42))
    assert torch.equal(old["agent.actor.0.weight"], weights(runs, "again", 44)["agent.actor.0.weight"])


# --- evaluation


@pytest.mark.parametrize(
    "arguments",
    [
        ["-run_name=storm", "-num_episodes=2"],
        ["--run_name", "storm", "--num_episodes", "2"],
        ["-run_name", "storm", "--num_episodes=2", "-env_name=ALE/KungFuMaster-v5"],
    ],
)
def test_options_take_one_or_two_dashes_and_equals_or_space(runs: Path, arguments: list[str]) -> None:
    result = evaluate(runs, *arguments, "-checkpoints=last")
    assert result.code == 0, result.error
    assert f"step {STEPS}: mean return" in result.out and "standard deviation" in result.out


def test_all_checkpoints_go_into_both_tables(runs: Path) -> None:
    assert evaluate(runs, "-run_name=git", "-num_episodes=3", "-num_envs=2", "-seed=5").code == 0
    header, *rows = table(runs, "git")
    assert header == COLUMNS and [row[0] for row in rows] == ["50", "100", "120"]
    assert all(row[4:] == ["3", "5", "fair", "0", "2", ""] for row in rows)
    assert (
        evaluate(runs, "-run_name=git", "-num_episodes=3", "-num_envs=2", "-seed=5", "-checkpoints=last").code
        == 0
    )
    assert table(runs, "git")[1:] == rows  # each checkpoint alone is scored the same
    episode_header, *episodes = table(runs, "git_episodes")
    assert episode_header == ["step", "episode", "return", "length", *HOW]
    assert all(row[4:] == rows[0][4:] for row in episodes)
    for row in rows:
        scores = [float(episode[2]) for episode in episodes if episode[0] == row[0]]
        assert len(scores) == 3 and float(row[1]) == pytest.approx(np.mean(scores))
        assert float(row[2]) == pytest.approx(np.std(scores, ddof=1))


def test_no_evaluation_replaces_another(runs: Path) -> None:
    folder = runs / "outputs" / "eval_result"
    for name in ("storm.csv", "storm_episodes.csv"):
        (folder / name).unlink(missing_ok=True)
    commands = [
        "-num_episodes=2",
        "-num_episodes=1 -greedy",
        "-num_episodes=1 -record_video",
        "-num_episodes=2",
    ]
    for options in commands:
        assert evaluate(runs, "-run_name=storm", "-checkpoints=100", *options.split()).code == 0
    assert (
        evaluate(
            runs, "-run_name=storm", "-checkpoints=last", "-num_episodes=1", "-ckpt_dir=outputs/git/ckpt"
        ).code
        == 2
    )
    rows = [(row[0], row[4], row[7]) for row in table(runs, "storm")[1:]]
    assert rows == [("100", "1", "1"), ("100", "1", "0"), ("100", "2", "0")]
    assert len(table(runs, "storm_episodes")) == 1 + 4


@pytest.mark.parametrize("folder", ["outputs/git/", "runs/git", "git/"])
def test_settings_that_change_a_score_stand_in_its_row(runs: Path, folder: str) -> None:
    options = [f"-run_name={folder}", "-checkpoints=50", "-num_episodes=1", "-num_threads=1"]
    settings = ["Environment.StickyActions=0", "Environment.MaxFaults=9", "Evaluation.VideoWindows=1"]
    result = evaluate(runs, *options, *settings)
    assert result.code == 0 and "with Environment.StickyActions=0.0" in result.out, result.error
    assert "Environment.StickyActions=0.0" in [row[-1] for row in table(runs, "git") if row[0] == "50"]


def test_settings_of_another_environment_than_was_trained_in_are_refused(runs: Path) -> None:
    result = evaluate(
        runs, "-run_name=storm", "-checkpoints=50", "-num_episodes=1", "Environment.FullActionSpace=True"
    )
    assert result.code == 2
    assert "14 discrete actions, but here are image observations (16, 16, 3) and 18 discrete" in result.error


def test_checkpoints_that_were_finished_before_an_interruption_keep_their_rows(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = []

    def interrupted(*arguments: Any) -> list[Episode]:
        played.append(arguments)
        if len(played) == 2:
            raise KeyboardInterrupt
        return [Episode(1.0, 5)]

    monkeypatch.setattr(scoring, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(runs, "-run_name=storm", "-seed=77")
    assert [row[0] for row in table(runs, "storm") if row[5] == "77"] == ["50"]


def record_video(runs: Path, name: str, *options: str) -> str:
    result = evaluate(runs, f"-run_name={name}", "-checkpoints=last", "-record_video", *options)
    assert result.code == 0, result.error
    return result.out


def test_a_video_shows_whole_episodes_as_the_emulator_draws_them(runs: Path) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    out = record_video(runs, "storm", "-num_episodes=3", "-num_envs=2")  # of which two are environment 0's
    path = runs / "outputs" / "eval_result" / "storm" / f"{STEPS}-3_episodes-2_envs-seed_0.mp4"
    assert f"{path.name}\n" in out
    frames = ffmpeg.read_frames(str(path))
    assert next(frames)["source_size"] == (160, 210) and len(list(frames)) == 2 * 25


def test_the_dream_stands_beside_the_game_and_changes_no_score(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    scores = [
        evaluate(
            runs, "-run_name=storm", "-checkpoints=last", "-num_episodes=2", "-seed=5", *how
        ).out.splitlines()
        for how in ([], ["-record_dream"])
    ]
    said = [next(line for line in lines if "mean return" in line) for lines in scores]
    assert said[0] == said[1]
    with Image.open(runs / "outputs/eval_result/storm" / f"{STEPS}-2_episodes-1_envs-seed_5.gif") as video:
        assert video.size == (182 + 240, 240)
        dreams = [np.asarray(frame.convert("RGB"))[:, 182:] for frame in ImageSequence.Iterator(video)]
    assert not dreams[0].any() and all(dream.any() for dream in dreams[1:])


def test_without_an_encoder_a_video_is_a_gif(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    settings = ["BasicSettings.env_name=Diagnostic/Catch-v0", "JointTrainAgent.SampleMaxSteps=5"]
    assert train(runs, "catch", *settings).code == 0
    assert "human-normalised" not in record_video(runs, "catch", "-num_episodes=2")
    assert table(runs, "catch")[1][3] == ""  # no human has played it
    path = runs / "outputs" / "eval_result" / "catch" / "5-2_episodes-1_envs-seed_0.gif"
    with Image.open(path) as picture:
        assert picture.n_frames == 18 and picture.size == (16, 16)
    monkeypatch.setattr(video, "GIF_PICTURES", 8)
    record_video(runs, "catch", "-num_episodes=2")
    with Image.open(path) as picture:  # every fourth picture, at the same speed
        assert picture.n_frames == 5 and picture.info["duration"] == pytest.approx(4 * 1000 / 15, abs=10)
    kept = path.read_bytes()
    record_video(runs, "catch", "-num_episodes=2", "-greedy", "-seed=7")
    assert path.with_name("5-2_episodes-1_envs-seed_7-greedily.gif").exists() and path.read_bytes() == kept


def test_evaluations_are_seeded_apart_from_training_and_from_one_another(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[list[int]] = []
    streams: list[int] = []
    record_calls(monkeypatch, VectorEnvironment, "reset", lambda owner, _: seeds.append(list(owner.seeds)))
    record_calls(monkeypatch, EvaluationPolicy, "act", lambda owner, _: streams.append(owner.streams.seed))
    settings = ["JointTrainAgent.EvalEverySteps=20", "JointTrainAgent.SampleMaxSteps=42"]
    assert train(runs, "seeds", *settings, "BasicSettings.Seed=3").code == 0
    assert evaluate(runs, "-run_name=seeds", "-num_episodes=1").code == 0
    training, *evaluations = [each for count, each in enumerate(seeds) if each not in seeds[:count]]
    assert training == [3] and len(evaluations) == 3
    assert all(abs(seed - 3) > 1_000 for seeds in evaluations for seed in seeds)
    assert len(set(streams)) == 3 and 3 not in streams


def test_a_contradiction_of_the_saved_config_is_an_error(runs: Path) -> None:
    wrong_game = evaluate(runs, "-run_name=storm", "-env_name=ALE/Boxing-v5")
    assert wrong_game.code == 2 and "ALE/Boxing-v5" in wrong_game.error and "KungFuMaster" in wrong_game.error
    wrong_model = evaluate(runs, "-run_name=storm", "-config_path=config_files/GITSTORM.yaml")
    assert wrong_model.code == 2 and "GITSTORM" in wrong_model.error
    wrong_size = evaluate(runs, "-run_name=storm", "-config_path=config_files/STORM-tiny.yaml")
    assert wrong_size.code == 2 and "-config_path" in wrong_size.error
    same = evaluate(
        runs,
        *("-run_name=storm", "-config_path=config_files/STORM.yaml", "-checkpoints=last", "-num_episodes=1"),
    )
    assert same.code == 0, same.error


def test_an_agent_is_loaded_in_three_lines(runs: Path) -> None:
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    with in_folder(runs):
        policy = load_policy("storm", num_envs=2, device="cpu")
        actions = [policy.act(frames) for _ in range(8)]
    assert all(action.shape == (2,) and action.dtype == np.int64 for action in actions)
    assert len({tuple(action) for action in actions}) > 1
    for wrong in (frames[:1], frames[0], frames.astype(np.float32), torch.zeros(2, 3, 16, 16), None):
        with pytest.raises(ValueError, match=r"act\(\) wants uint8 \(2, 16, 16, 3\), found"):
            policy.act(wrong)


def test_what_an_agent_sees_and_does_is_saved_with_its_run(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_environment(config: object) -> None:
        raise AssertionError("the run says it")

    monkeypatch.setattr("evaluation.policies.environment_spaces", no_environment)
    with in_folder(runs):
        spaces = load_policy("storm", device="cpu").world_model.spaces
    assert (spaces.observation.shape, spaces.action.size) == ((16, 16, 3), 14)


def test_an_agent_is_loaded_from_any_folder(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation_policies, "REPOSITORY", runs)
    run = runs / "outputs" / "storm"
    files = [run / "ckpt" / name for name in ("agent_50.pth", "world_model_100.pth")]
    sources = ["storm", f"{run}/", run / "ckpt", *files, f"{runs}/runs/storm"]
    with in_folder(tmp_path):
        policies = [load_policy(source, device="cpu") for source in sources]
        shutil.copytree(run / "ckpt", tmp_path / "mine")
        shutil.copy(run / "config.yaml", tmp_path / "mine")
        policies.append(load_policy("mine", "100", device="cpu"))
        for source in ("strom", "no/such", run / "config.yaml", str(run / "ckpt" / "agent_7.pth")):
            with pytest.raises(UserError):
                load_policy(source)
    saved = [
        weights(runs, "storm", step)["agent.actor.0.weight"] for step in (120, 120, 120, 50, 100, 120, 100)
    ]
    loaded = [policy.agent.actor[0].weight for policy in policies]
    assert all(map(torch.equal, loaded, saved)) and len(loaded) == len(saved)


def test_a_loaded_agent_makes_the_environment_that_it_acts_in(runs: Path) -> None:
    with in_folder(runs):
        policy = load_policy("storm", device="cpu")
    with contextlib.closing(policy.make_environment()) as environment:
        environment.start_step(policy.act(environment.reset()))
        frames = environment.finish_step().observation
        assert frames.shape == (1, 16, 16, 3) and environment.name == "ALE/KungFuMaster-v5"
        (length,) = {episode.length for episode in play_episodes(policy, environment, 1)}
    assert length == 25  # as the run's own MaxEpisodeFrames says


def test_a_loaded_agent_is_as_greedy_as_its_run(runs: Path) -> None:
    assert train(runs, "greedy", "Evaluation.Greedy=true", "JointTrainAgent.SampleMaxSteps=5").code == 0
    with in_folder(runs):
        assert load_policy("greedy", device="cpu").greedy and not load_policy("storm", device="cpu").greedy
        assert load_policy("storm", device="cpu", greedy=True).greedy


@pytest.fixture
def original_storm(tmp_path: Path) -> Path:
    """Checkpoints as the original STORM writes them, and a config of their sizes."""
    manifest = read_manifest(Path(__file__).resolve().parents[1] / "data" / "manifest.json")
    for name in ("world_model", "agent"):
        torch.save(manifest.weights(getattr(manifest, name)), tmp_path / f"{name}_7.pth")
    sizes = manifest.config
    transformer = {
        "TransformerMaxLength": sizes["transformer_max_length"],
        "TransformerHiddenDim": sizes["transformer_hidden_dim"],
        "TransformerNumLayers": sizes["transformer_num_layers"],
        "TransformerNumHeads": sizes["transformer_num_heads"],
    }
    agent = {"NumLayers": sizes["agent_num_layers"], "HiddenDim": sizes["agent_hidden_dim"]}
    content = {
        "base": "STORM.yaml",
        "BasicSettings": {"device": "cpu", "NumThreads": 1},
        "Environment": {"MaxEpisodeFrames": 48},
        "Models": {"WorldModel": transformer, "Agent": agent},
    }
    (tmp_path / "STORM.yaml").write_text((REPOSITORY / "config_files" / "STORM.yaml").read_text())
    (tmp_path / "original.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


def test_checkpoints_of_the_original_storm_are_evaluated(original_storm: Path) -> None:
    game = "-env_name=ALE/Pong-v5"  # six actions, as the checkpoint has
    arguments = ["-run_name=original", "-ckpt_dir=.", "-config_path=original.yaml", "-num_episodes=1"]
    result = evaluate(original_storm, *arguments, game)
    assert result.code == 0, result.error
    assert [row[0] for row in table(original_storm, "original")] == ["step", "7"]
    with in_folder(original_storm):
        config = load_config(
            ["BasicSettings.config_path=original.yaml", "BasicSettings.env_name=ALE/Pong-v5"]
        )
        execution = Execution(config.BasicSettings, torch.device("cpu"))
        models = load_models(config, environment_spaces(config), execution, Path(), 7)
    assert EvaluationPolicy(config, models, 1, execution, 0, greedy=False).blind  # as its actor was trained
    wrong = evaluate(original_storm, *arguments, "-env_name=ALE/Boxing-v5")  # eighteen
    assert wrong.code == 2 and "world_model_7.pth" in wrong.error and "shape" in wrong.error


# --- the commands, as typed


def run_script(script: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "STORM_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = ["bash", str(script), *arguments]
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("config", ["STORM-tiny", "GITSTORM-tiny"])
def test_presets_train_and_are_scored_by_the_scripts(tmp_path: Path, config: str) -> None:
    repository = tmp_path / "a clone"  # so that nothing is written into this one
    repository.mkdir()
    for path in REPOSITORY.iterdir():
        if path.name[0] != "." and path.name not in ("outputs", "runs"):
            (repository / path.name).symlink_to(path)
    short = [
        "JointTrainAgent.SampleMaxSteps=160",
        "JointTrainAgent.BufferWarmUp=100",
        "JointTrainAgent.ImagineBatchSize=8",
        "JointTrainAgent.BatchSize=2",
        "BasicSettings.NumThreads=1",
        "Environment.MaxEpisodeFrames=80",
    ]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    trained = run_script(repository / "train.sh", "KungFuMaster", "3", config, *short, cwd=elsewhere)
    assert trained.returncode == 0, trained.stderr
    name = f"KungFuMaster-{config}-seed_3"
    assert (repository / "outputs" / name / "ckpt" / "agent_160.pth").is_file()
    scored = run_script(
        repository / "evals.sh", "KungFuMaster", name, config, "-num_episodes=1", cwd=elsewhere
    )
    assert scored.returncode == 0, scored.stderr
    header, row = table(repository, name)
    assert header == COLUMNS and row[0] == "160"
    assert not list(elsewhere.iterdir())


def test_the_configuration_is_printed(runs: Path) -> None:
    result = train(runs, "printed", "JointTrainAgent.SampleMaxSteps=5")
    printed = yaml.safe_load(result.out.split("\n...\n")[0])
    assert printed["JointTrainAgent"]["SampleMaxSteps"] == 5
    assert len(SMALL) > 0 and printed["Models"]["WorldModel"]["NumLatents"] == 4
