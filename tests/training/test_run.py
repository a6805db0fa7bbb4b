"""Seeds, videos and faults of one run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import stub_envs
import torch
from key_effects import BASE, ENV, running, watch
from tqdm import tqdm

from configuration.loading import apply_overrides
from configuration.schema import Config
from evaluation.episodes import evaluation_environment
from run_files.directory import RunDirectory
from train import train
from training import run as training_run
from training.resume import open_run
from training.run import TrainingRun

Start = Callable[..., TrainingRun]


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts a run and trains it to its end."""
    monkeypatch.chdir(tmp_path)
    runs = []

    def start(*overrides: str) -> TrainingRun:
        stub_envs.Stumbling.taken = 0
        runs.append(open_run(apply_overrides(Config(), [*BASE, *overrides]), RunDirectory("run")))
        train(runs[-1], SimpleNamespace(signal=None), tqdm(disable=True))
        return runs[-1]

    yield start
    for run in runs:
        run.close()


def test_evaluations_are_seeded_apart_from_training_and_from_each_other(tmp_path: Path) -> None:
    config = apply_overrides(Config(), [*BASE, "Evaluation.NumEnvs=2", "Evaluation.NumEpisodes=2"])
    seen = running(config, tmp_path)
    scored = evaluation_environment(config, 2, config.BasicSettings.Seed)
    seeds = [*seen["evaluation seeds"], *seen["seeds"], *scored.seeds]
    scored.close()
    assert len(seeds) == 2 * 2 + 1 + 2 == len(set(seeds))


@pytest.mark.parametrize("greedy", [True, False])
def test_evaluations_in_training_are_as_greedy_as_evaluations_are(
    trained: Start, monkeypatch: pytest.MonkeyPatch, greedy: bool
) -> None:
    made = []
    original = training_run.EvaluationPolicy

    def policy(*arguments: Any) -> Any:
        made.append(original(*arguments))
        return made[-1]

    monkeypatch.setattr(training_run, "EvaluationPolicy", policy)
    trained(f"Evaluation.Greedy={greedy}", "JointTrainAgent.EvalEverySteps=20", "Evaluation.NumEpisodes=1")
    assert made and {each.greedy for each in made} == {greedy}


def test_a_finding_is_logged_as_one_where_it_is_ok(trained: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_run, "health", lambda *_: {"KL": "ok (1.5)", "policy": "look (0.01)"})
    run = trained()
    lines = [json.loads(line) for line in run.directory.metrics_file.read_text().splitlines()]
    found = [(line["health/KL"], line["health/policy"]) for line in lines if "health/KL" in line]
    assert found and set(found) == {(1.0, 0.0)}
    assert run.health_line() == f"step {run.step}: KL ok (1.5); policy look (0.01)"


def test_the_video_of_each_checkpoint_shows_other_windows(trained: Start) -> None:
    run, shown = trained(), []
    watch(run.logger, "video", lambda _, step, tag, frames, *more: shown.append(frames))
    for nominal in (40, 60, 40):
        run.save_checkpoint(nominal)
    assert np.array_equal(shown[0], shown[2]) and not np.array_equal(shown[0], shown[1])


def test_faults_are_in_a_row_only_without_a_step_between(tmp_path: Path) -> None:
    seen = running(apply_overrides(Config(), [*BASE, ENV("Stumbling"), "Environment.MaxFaults=3"]), tmp_path)
    assert seen["outcome"] == (32, True) and seen["faults"] == (4, 4)


def test_too_little_memory_for_a_state_is_not_called_a_bad_state(
    trained: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained()

    def fail(state: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(run, "_take_state", fail)
    with pytest.raises(torch.OutOfMemoryError):
        run._restore(SimpleNamespace(notes=[], state={}))


@pytest.mark.parametrize(("device", "kept"), [("cpu", True), ("cuda", False)])
def test_threads_beside_a_gpu_are_not_kept(device: str, kept: bool) -> None:
    execution = SimpleNamespace(device=torch.device(device))
    run = SimpleNamespace(config=apply_overrides(Config(), BASE), execution=execution, notes=[], threads=0)
    TrainingRun.use_threads(run)
    assert run.threads == (torch.get_num_threads() if kept else 0)


@pytest.mark.parametrize("on_gpu", [True, False])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_run_with_its_replay_buffer_here_or_there(trained: Start, device: str, on_gpu: bool) -> None:
    run = trained(f"BasicSettings.device={device}", f"BasicSettings.ReplayBufferOnGPU={on_gpu}")
    assert run.replay.device.type == (device if on_gpu else "cpu")
    assert run.learned_steps > 0 and run.learner.world_model_optimizer.bad_total == 0


def test_a_step_that_failed_is_neither_stored_nor_remembered(trained: Start) -> None:
    run = trained(ENV("Stumbling"), "JointTrainAgent.SampleMaxSteps=13", "JointTrainAgent.BufferWarmUp=8")
    assert run.faults == 4 and run.step == len(run.replay) == 13
    context = run.policy.state_dict()
    stored = run.replay.export_rows(run.replay.count - context["actions"].shape[1], run.replay.count)
    for name, remembered in (("observation", context["context"]), ("action", context["actions"])):
        assert torch.equal(remembered[0], torch.from_numpy(stored[name][:, 0])), name


def test_the_action_of_a_box_that_is_stored_is_the_one_that_was_executed(trained: Start) -> None:
    """With one step an episode of Reach pays by how far the executed action is from the target seen."""
    run = trained("BasicSettings.env_name=Diagnostic/Reach-v0", "Environment.Arguments={steps: 1}")
    stored = run.replay.export_rows(run.replay.oldest, run.replay.count)
    action, target = stored["action"][:, 0], stored["observation"][:, 0, 2:]
    assert np.abs(action).max() == 1, "some draws lay outside of the box"
    paid = 1 - np.linalg.norm(target - action, axis=-1)
    np.testing.assert_allclose(stored["reward"][:, 0], paid, atol=1e-5)
    remembered = run.policy.state_dict()["actions"][0]
    assert torch.equal(remembered, torch.from_numpy(action[-len(remembered) :]))
