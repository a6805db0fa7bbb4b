"""The report on a world model's predictions of held-out episodes."""

from __future__ import annotations

import contextlib
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tests_support import CPU, SPACES, random_batch, small_config, small_models

import eval as eval_module
from agents import make_models
from compute.execution import Execution
from compute.random_streams import RandomStreams
from configuration.schema import Config
from env_wrapper import EnvironmentFault, StepResult, VectorEnvironment
from evaluation.episodes import environment_spaces, evaluation_environment
from evaluation.open_loop import OpenLoop
from evaluation.policies import EvaluationPolicy, TrainedModels
from evaluation.predictions import (
    errors_by_horizon,
    play_episodes,
    reward_correlation,
    round_to_sign,
    spread_windows,
    window_lengths,
)
from evaluation.world_model_report import table, write_report
from run_files.directory import RunDirectory
from run_files.weights import save_weights
from sub_models.batch import Batch
from sub_models.functions_losses import entropy, symlog
from utils import UserError

CONTEXT, HORIZON, WINDOWS = 3, 5, 6


def catch_config(model_type: str = "STORM") -> Config:
    config = small_config(model_type)
    config.BasicSettings.env_name = "Diagnostic/Catch-v0"
    config.BasicSettings.device = "cpu"
    config.JointTrainAgent.BatchLength = CONTEXT + HORIZON
    config.Evaluation.PredictionWindows = WINDOWS
    return config


@pytest.mark.parametrize("model_type", ["STORM", "GITSTORM"])
def test_eval_writes_json_plot_and_video(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config, run = catch_config(model_type), RunDirectory("catch")
    run.save_config(config)
    for name, model in zip(("world_model", "agent"), make_models(config, SPACES, CPU), strict=True):
        save_weights(run.checkpoints / f"{name}_100.pth", model)
    results = []
    for _ in range(2):
        eval_module.main(["-run_name=catch", "-world_model"])
        results.append(json.loads(Path("outputs/eval_result/catch/world_model-100-seed_0.json").read_text()))
    assert results[0] == results[1]
    result = results[0]
    assert (result["step"], result["context"], result["windows"]) == (100, CONTEXT, WINDOWS)
    assert all(len(values) == HORIZON for values in result["by_horizon"].values())
    assert result["steps_played"] == 9 * len(result["episode_returns"]) >= WINDOWS * (CONTEXT + HORIZON)
    with Image.open("outputs/eval_result/catch/world_model-100-seed_0.gif") as video:
        assert video.n_frames > 1 and video.size == (4 * 16, 3 * 16 + 2)
    with Image.open("outputs/eval_result/catch/world_model-100-seed_0.png") as figure:
        assert figure.format == "PNG"
    better = re.search(rf"better than copying at (\d+) of {HORIZON}", capsys.readouterr().out)
    assert int(better[1]) < HORIZON, "it has learnt nothing"
    assert not Path("outputs/eval_result/catch.csv").exists()


def test_vectors_are_judged_in_symlog_space_and_not_filmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config, run = catch_config(), RunDirectory("pole")
    config.BasicSettings.env_name = "CartPole-v1"
    run.save_config(config)
    spaces = environment_spaces(config)
    for name, model in zip(("world_model", "agent"), make_models(config, spaces, CPU), strict=True):
        save_weights(run.checkpoints / f"{name}_100.pth", model)
    eval_module.main(["-run_name=pole", "-world_model"])
    assert {path.suffix for path in Path("outputs/eval_result/pole").iterdir()} == {".json", ".png"}
    assert "horizons at which the observation changes" in capsys.readouterr().out
    batch = Batch(
        torch.randn(2, CONTEXT + HORIZON, 4), torch.zeros(2, CONTEXT + HORIZON).long(), *torch.zeros(2, 2, 8)
    )
    world_model, _ = make_models(config, spaces, CPU)
    hidden = torch.randn(2, CONTEXT + HORIZON, world_model.config.TransformerHiddenDim)
    prediction = OpenLoop(symlog(batch.observation) + 0.5, hidden, batch.reward, batch.termination, hidden)
    errors = errors_by_horizon(world_model, batch, prediction, CONTEXT, RandomStreams(0, CPU))
    assert errors["model_error"] == pytest.approx([0.25] * HORIZON)
    copied = symlog(batch.observation[:, CONTEXT:]) - symlog(batch.observation[:, CONTEXT - 1 : CONTEXT])
    assert errors["copy_error"] == pytest.approx(copied.square().mean((0, 2)).tolist())


def test_told_rewards_are_compared_with_those_of_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward that is the hidden state's first number, of frames that are all seen."""
    world_model, _ = small_models()
    batch, streams = random_batch(3, 5), RandomStreams(0, CPU)
    monkeypatch.setattr(type(world_model), "predict_reward", lambda _, hidden: hidden[..., 0].float())
    noise = RandomStreams(0, CPU).uniform("reward_correlation", 3, 5, world_model.posterior_noise_size)
    with torch.no_grad():
        hidden = world_model.start(batch.observation, batch.action, noise, 0).hiddens
    told = hidden[..., 0].float()
    assert reward_correlation(world_model, batch._replace(reward=told), streams) == pytest.approx(1)
    later = told.roll(1, 1)
    expected = np.corrcoef(told.flatten(), later.flatten())[0, 1]
    streams = RandomStreams(0, CPU)
    assert reward_correlation(world_model, batch._replace(reward=later), streams) == pytest.approx(expected)
    assert math.isnan(reward_correlation(world_model, batch._replace(reward=torch.zeros(3, 5)), streams))


def test_held_out_play_is_whole_episodes_in_order() -> None:
    config = catch_config()
    environment = VectorEnvironment("Diagnostic/Catch-v0", config.Environment, 16, 1, 7)
    models = TrainedModels(*make_models(config, SPACES, CPU))
    try:
        policy = EvaluationPolicy(config, models, 1, Execution(config.BasicSettings, CPU), 0, False)
        steps, returns = play_episodes(policy, environment, 20, max_faults=1)
    finally:
        environment.close()
    assert steps.observation.shape == (1, 27, 16, 16, 3) and steps.observation.dtype == torch.uint8
    ends = [8, 17, 26]
    assert steps.termination[0].nonzero().flatten().tolist() == ends
    assert steps.reward[0, ends].tolist() == returns and set(returns) <= {-1.0, 1.0}
    assert steps.reward[0].count_nonzero() == 3
    ball_is_on_top = (steps.observation[0, :, 0] != steps.observation[0, 1, 0, 0]).flatten(1).any(-1)
    assert ball_is_on_top.nonzero().flatten().tolist() == [0, 9, 18]


def test_an_environments_fault_drops_the_episode_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    config = catch_config()
    environment = evaluation_environment(config, 1, 0)
    finish_step, calls = environment.finish_step, []

    def failing() -> StepResult:
        calls.append(finish_step())
        if len(calls) in faults:
            environment.reset()
            raise EnvironmentFault("it died")
        return calls[-1]

    monkeypatch.setattr(environment, "finish_step", failing)
    models = TrainedModels(*make_models(config, SPACES, CPU))
    policy = EvaluationPolicy(config, models, 1, Execution(config.BasicSettings, CPU), 0, False)
    with contextlib.closing(environment):
        faults = (12,)
        steps, returns = play_episodes(policy, environment, 20, max_faults=2)
        assert steps.reward.shape == (1, 27) and len(returns) == 3
        faults = (len(calls) + 5, len(calls) + 6)
        with pytest.raises(UserError, match="2 environment faults in a row, the last one: it died"):
            play_episodes(policy, environment, 20, max_faults=2)


def test_windows_are_spread_evenly_and_disjoint() -> None:
    steps = Batch(*(torch.arange(40).view(1, 40) for _ in range(4)))
    windows = spread_windows(steps, 5, 8).action
    assert windows.flatten().tolist() == list(range(40))
    assert spread_windows(steps, 3, 8).action[:, 0].tolist() == [0, 16, 32]
    with pytest.raises(AssertionError, match="too few"):
        spread_windows(steps, 1, 41)


def report_on(
    batch: Batch, frames: torch.Tensor, reward: torch.Tensor, termination: torch.Tensor
) -> SimpleNamespace:
    world_model, _ = small_models()
    torch.nn.init.zeros_(world_model.prior.head.weight)
    torch.nn.init.zeros_(world_model.prior.head.bias)
    hidden = torch.randn(*batch.action.shape, world_model.config.TransformerHiddenDim)
    prediction = OpenLoop(frames, hidden, reward, termination, hidden)
    return SimpleNamespace(
        **errors_by_horizon(world_model, batch, prediction, CONTEXT, RandomStreams(0, CPU))
    )


def test_perfect_predictions_have_no_error_and_copying_has() -> None:
    batch = random_batch(WINDOWS, CONTEXT + HORIZON)
    frames = batch.observation.float().movedim(-1, 2) / 255
    report = report_on(batch, frames, batch.reward, batch.termination)
    assert max(report.model_error + report.moved_model_error + report.reward_error) < 1e-12
    assert report.reward_accuracy == report.termination_accuracy == [1.0] * HORIZON
    assert report.changed_share == [1.0] * HORIZON
    assert min(report.copy_error) > 0.1
    assert report.no_termination_accuracy == pytest.approx(
        (1 - batch.termination[:, CONTEXT:].mean(0)).tolist()
    )


def test_copying_is_judged_where_the_picture_changes() -> None:
    batch = random_batch(2, CONTEXT + HORIZON)
    batch.observation[:] = 0
    batch.observation[0, CONTEXT + 1 :, 0, 0, 0] = 255  # one number of one window, from horizon 2 on
    frames = torch.full((2, CONTEXT + HORIZON, 3, 16, 16), 0.1)
    report = report_on(batch, frames, batch.reward, batch.termination)
    size = 3 * 16 * 16
    assert report.changed_share == [0.0] + [0.5] * (HORIZON - 1)
    assert math.isnan(report.changed_copy_error[0]) and math.isnan(report.moved_copy_error[0])
    assert report.copy_error == pytest.approx([0] + [0.5 / size] * (HORIZON - 1))
    assert report.changed_copy_error[1:] == pytest.approx([1 / size] * (HORIZON - 1))
    assert report.moved_copy_error[1:] == pytest.approx([1.0] * (HORIZON - 1))
    assert report.moved_model_error[1:] == pytest.approx([0.81] * (HORIZON - 1))
    assert report.model_error[0] == pytest.approx(0.01)
    assert math.isnan(report.changed_reconstruction_error[0])
    assert min(report.changed_reconstruction_error[1:]) > 0


def test_a_prior_that_knows_nothing_is_as_perplexed_as_there_are_classes() -> None:
    batch = random_batch(WINDOWS, CONTEXT + HORIZON)
    world_model, _ = small_models()
    report = report_on(
        batch, torch.rand(WINDOWS, CONTEXT + HORIZON, 3, 16, 16), batch.reward, batch.termination
    )
    latents, classes = world_model.config.NumLatents, world_model.config.NumClasses
    assert report.prior_perplexity == pytest.approx([classes] * HORIZON)
    unknown = math.log(classes) - entropy(world_model.posterior(batch.observation[:, CONTEXT:])).mean((0, -1))
    assert report.prior_kl == pytest.approx((latents * unknown).tolist(), abs=1e-5)


def test_small_rewards_count_as_zero() -> None:
    real = torch.tensor([0.0, 4.0, -10.0])
    assert round_to_sign(torch.tensor([1.9, 2.1, -2.1, -1.9, 0.0]), real).tolist() == [0, 1, -1, 0, 0]
    assert round_to_sign(torch.tensor([0.4, 0.6]), torch.zeros(3)).tolist() == [0, 1]


def test_the_horizon_stays_within_what_training_saw() -> None:
    config = catch_config()
    assert window_lengths(config) == (CONTEXT, HORIZON)
    config.JointTrainAgent.BatchLength = 64
    assert window_lengths(config) == (CONTEXT, 15)
    config.JointTrainAgent.BatchLength = CONTEXT
    with pytest.raises(UserError, match="nothing to predict"):
        window_lengths(config)


def test_the_table_shows_each_horizon(tmp_path: Path) -> None:
    columns = {name: [0.25, math.nan] for name in vars(report_on_noise())}
    result = {
        "env_name": "x", "model": "STORM", "step": 1, "windows": 2, "episode_returns": [0.0], "context": 3,
        "reward_correlation": 0.5, "by_horizon": columns,
    }  # fmt: skip
    write_report(result, None, tmp_path / "run")
    written = json.loads((tmp_path / "run.json").read_text())["by_horizon"]
    assert written["model_error"] == [0.25, None]  # JSON knows no nan
    lines = table(result).splitlines()
    assert [line.split()[0] for line in lines[3:5]] == ["1", "2"]
    assert "0.2500" in lines[3] and "NaN" in lines[4]
    better, told = lines[5].split("; ")
    assert better == "better than copying at 0 of 1 horizons at which the observation changes"
    assert told == "correlation of told and true rewards, all frames seen: 0.50"
    columns["changed_copy_error"][0] = 0.3
    assert "better than copying at 1 of 1 horizons" in table(result)


def report_on_noise() -> SimpleNamespace:
    batch = random_batch(2, CONTEXT + HORIZON)
    frames = torch.from_numpy(np.zeros((2, CONTEXT + HORIZON, 3, 16, 16), np.float32))
    return report_on(batch, frames, batch.reward, batch.termination)
