"""experiments/control.py: runs, records and draws a small grid."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments import control

TINY = [
    "JointTrainAgent.SampleMaxSteps=120",
    "JointTrainAgent.SaveEverySteps=60",
    "JointTrainAgent.BufferWarmUp=60",
    "JointTrainAgent.BatchSize=2",
    "JointTrainAgent.ImagineBatchSize=2",
]


def test_a_grid_is_run_recorded_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--tasks", "CartPole-v1", "--models", "STORM-control", "--seeds", "3", "--episodes", "2"]
    arguments += ["--variant", "latents", "--out", "records", "Models.WorldModel.StateMixer=latent_attention"]
    for _ in range(2):  # the second time from what is there
        assert control.main([*arguments, *TINY]) == 0
    record = json.loads(Path("records/CartPole-v1.json").read_text())
    (run,) = record["runs"]
    assert (record["task"], run["model"], run["seed"]) == ("CartPole-v1", "STORM-control latents", 3)
    assert run["simulator_steps"] == run["trained_steps"] == 120 and len(run["evaluation_returns"]) == 2
    finished = [value for step, value in run["training_returns"] if step > 120 - record["window"]]
    assert run["final_training_return"] == pytest.approx(sum(finished) / len(finished))
    assert Path("records/control.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("task", "environment", "name"),
    [
        ("walker-stand", "dm_control/walker-stand-v0", "walker-stand-STORM-control-seed_1"),
        ("Pendulum-v1", "Pendulum-v1", "Pendulum-v1-STORM-control-seed_1"),
    ],
)
def test_tasks_without_a_version_are_of_dm_control(task: str, environment: str, name: str) -> None:
    run = control.Run(task, "STORM-control", "", 1)
    assert (run.environment, run.name) == (environment, name)
