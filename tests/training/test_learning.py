"""Both models learn Catch, on one thread."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from experiments import training

LIMIT = 3000  # environment steps
AVERAGED = 50
TARGET = 0.8  # mean return of as many training episodes; 1 is perfect, random play -0.6
EVERY_SPEED_SETTING = ("BasicSettings.Precision=bfloat16", "BasicSettings.Compile=always")


def steps_needed(returns: list[tuple[int, float]]) -> int | None:
    """The first step at which the last 50 training episodes average the target; None if there is none."""
    for end in range(AVERAGED, len(returns) + 1):
        if sum(value for _, value in returns[end - AVERAGED : end]) >= TARGET * AVERAGED:
            return returns[end - 1][0]
    return None


@pytest.mark.first
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("model", "overrides"),
    [
        ("STORM", ()),
        pytest.param("GITSTORM", (), marks=pytest.mark.slow),
        pytest.param("STORM", EVERY_SPEED_SETTING, marks=pytest.mark.slow),
        pytest.param("GITSTORM", EVERY_SPEED_SETTING, marks=pytest.mark.slow),
    ],
    ids=["STORM", "GITSTORM", "STORM-fastest", "GITSTORM-fastest"],
)
def test_catch_is_learned(tmp_path: Path, model: str, overrides: tuple[str, ...]) -> None:
    process = training.start_training("catch", f"{model}-catch", list(overrides), tmp_path)
    while process.poll() is None:
        time.sleep(1)
        if steps_needed(training.training_returns("catch", tmp_path)) is not None:
            process.terminate()
            process.wait()
    log = (tmp_path / "catch.log").read_text()
    needed = steps_needed(training.training_returns("catch", tmp_path))
    assert needed is not None and needed < LIMIT, log
    assert "running it eagerly" not in log


# Settings besides, steps, mean return of the first and of the last tenth of them: at most, at least. At
# random Reach returns -0.1 with one step and -0.4 with 16, at best 1 and 14.
REACH = {
    "bandit": (("Environment.Arguments={steps: 1}",), 1_000, 0.1, 0.45),
    "pointing": ((), 1_200, 1.0, 7.5),
    "bandit-pixels": (("Environment.Arguments={steps: 1}", "Environment.Observation=image"), 1_500, 0.1, 0.4),
    "pointing-pixels": (("Environment.Observation=image", "BasicSettings.ImageSize=16"), 3_000, 1.5, 3.0),
}


@pytest.mark.first
@pytest.mark.parametrize(
    "task",
    [
        "pointing",
        *(
            pytest.param(task, marks=pytest.mark.slow)
            for task in ("bandit", "bandit-pixels", "pointing-pixels")
        ),
    ],
)
def test_a_hand_is_moved_to_its_target(tmp_path: Path, task: str) -> None:
    also, steps, first, last = REACH[task]
    settings = [
        "BasicSettings.env_name=Diagnostic/Reach-v0",
        f"JointTrainAgent.SampleMaxSteps={steps}",
        "Models.WorldModel.VectorHiddenDim=64",
        "Models.WorldModel.VectorLayers=2",
        f"Models.WorldModel.ReconstructionWeight={1 if task == 'bandit-pixels' else 10}",
        *also,
    ]
    assert training.start_training("reach", "STORM-catch", settings, tmp_path).wait() == 0
    returns = [value for _, value in training.training_returns("reach", tmp_path)]
    tenth = len(returns) // 10
    assert sum(returns[:tenth]) / tenth < first and sum(returns[-tenth:]) / tenth > last


@pytest.mark.parametrize(
    ("returns", "step"),
    [
        ([1.0] * 49, None),
        ([1.0] * 50, 450),
        ([-1.0] * 30 + [1.0] * 50, 9 * 75),  # 45 of 50 caught
        ([-1.0, 1.0] * 100, None),
    ],
)
def test_steps_needed_is_when_fifty_episodes_average_the_target(
    returns: list[float], step: int | None
) -> None:
    episodes = [(9 * (index + 1), value) for index, value in enumerate(returns)]
    assert steps_needed(episodes) == step


def test_training_returns_are_read_from_whole_lines(tmp_path: Path) -> None:
    assert training.training_returns("run", tmp_path) == []
    file = tmp_path / "outputs" / "run" / "metrics.jsonl"
    file.parent.mkdir(parents=True)
    episode = '{"step": 9, "sample/Diagnostic/Catch-v0_reward": -1.0, "sample/x_episode_steps": 9}\n'
    file.write_text(episode + '{"step": 10, "WorldModel/real_reward": 0.5}\n{"step": 18, "sample/Diagn')
    assert training.training_returns("run", tmp_path) == [(9, -1.0)]
